"""Training losses: cross-entropy and distillation; and mixup, which works with both."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from compression.data.transfer import send


@dataclass(frozen=True)
class Batch:
    """The inputs of a loss besides the logits.

    images: normalised views (N, C, H, W). labels: int64 (N,), -1 = unlabelled, or after mixup class
    probabilities (N, C), zero for the unlabelled part. positions: of the photos in the training set (N,), on
    the CPU. view: index of the fixed view, or None. targets: probabilities (N, C) of the teachers, once
    `prepare` has added them.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor | None
    view: int | None
    targets: torch.Tensor | None = None


def tensors_of(batch):
    """The tensors of a Batch."""
    return [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]


def balanced_weights(labels, num_classes):
    """Class weights, float32 (num_classes,): n / (num_classes * photos of the class), as scikit-learn's
    "balanced".

    labels: int64 (n,), -1 = unlabelled, which is ignored. The mean weight over all labelled photos is 1.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=num_classes).float()
    return counts.sum() / (num_classes * counts.clamp(min=1))


def class_weights_of(settings, photos):
    """The class weights that the settings ask for on a PhotoSet; None for equal ones."""
    if settings.class_weights == "balanced":
        return balanced_weights(photos.labels.cpu(), len(photos.class_names))


class Loss:
    """What a training minimises: called with (logits, Batch), it returns a scalar, a mean over the batch.

    On a GPU its operations are recorded once and repeated for every batch (see `cuda_graph`), so it must not
    wait for the GPU. What differs from batch to batch on the CPU belongs into `prepare`. class_weights:
    float32 (classes,), or None for equal ones.
    """

    class_weights = None

    def prepare(self, batch):
        """The Batch as the loss is called with it."""
        return batch

    def weight_of(self, batch):
        """What the mean divides by: where several processes share a batch, each counts by this."""
        return len(batch.labels)

    def weights_for(self, logits):
        """The class weights on the device of the logits, copied there once; None for equal ones."""
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits)
        return self.class_weights

    def state_dict(self):
        """What a resumed run needs of it."""
        return {}

    def load_state_dict(self, state):
        """The inverse of `state_dict`."""


class CrossEntropy(Loss):
    """The loss of training from scratch."""

    def __init__(self, label_smoothing=0.0, class_weights=None):
        self.label_smoothing, self.class_weights = label_smoothing, class_weights

    def __call__(self, logits, batch):
        weights = self.weights_for(logits)
        return F.cross_entropy(logits, batch.labels, weight=weights, label_smoothing=self.label_smoothing)

    def weight_of(self, batch):
        if self.class_weights is None or batch.labels.ndim > 1:
            return super().weight_of(batch)
        return self.class_weights[batch.labels.cpu()].sum().item()


def mix(images, labels, num_classes, max_share, generator):
    """Mixup after Zhang et al. 2018, with a uniform share in place of Beta(alpha, alpha).

    Every view gets a share, uniform in [0, max_share], of another view of the batch. Returns (images, class
    probabilities (N, num_classes)); an unlabelled photo (-1) contributes zeros.
    """
    share = max_share * torch.rand(len(images), generator=generator)
    partners = torch.randperm(len(images), generator=generator)
    share, partners = (send(values, images.device) for values in (share, partners))
    probabilities = F.one_hot(labels.clamp(min=0), num_classes).float() * (labels >= 0).unsqueeze(1)
    images = torch.lerp(images, images[partners], share.view(-1, 1, 1, 1))
    probabilities = torch.lerp(probabilities, probabilities[partners], share.unsqueeze(1))
    return images.contiguous(memory_format=torch.channels_last), probabilities


def distillation_loss(student_logits, teacher_probabilities, labels, alpha, temperature, class_weights=None):
    """alpha * T^2 * KL(teacher || student at T) + (1 - alpha) * cross-entropy (Hinton et al. 2015), a scalar.

    student_logits: (N, C). teacher_probabilities: (N, C), the teacher's softmax at the same temperature T.
    labels: int64 (N,) with -1 for unlabelled photos, or probabilities (N, C). The divergence is summed over
    the classes and averaged over the batch; so is the cross-entropy, which is zero for unlabelled photos.
    class_weights: (C,) of the cross-entropy, or None. T^2 keeps the gradient's scale independent of T.
    """
    loss = student_logits.new_zeros(())
    if alpha > 0:
        log_student = F.log_softmax(student_logits / temperature, dim=1)
        divergence = F.kl_div(log_student, teacher_probabilities, reduction="batchmean")
        loss = loss + alpha * temperature**2 * divergence
    if alpha < 1:
        hard = F.cross_entropy(student_logits, labels, class_weights, ignore_index=-1, reduction="sum")
        loss = loss + (1 - alpha) * (hard / len(labels))
    return loss


def soft_targets(all_logits, temperature):
    """Mean of the teachers' softmax(logits / T): list of (N, C) -> (N, C)."""
    return torch.stack([(logits.float() / temperature).softmax(1) for logits in all_logits]).mean(0)
