"""All that a model file or checkpoint says of its network besides the weights."""

import json
from dataclasses import asdict, dataclass, field

import torch

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.networks.registry import build, check_size, full_arguments

FOREIGN = "a file of another program"


@dataclass(frozen=True)
class Description:
    """All that is needed to use a network's weights: how to build it, feed it and name its answers."""

    architecture: str
    arguments: dict
    class_names: tuple
    preprocessing: Preprocessing
    training: dict = field(default_factory=dict)

    @classmethod
    def of(cls, architecture, arguments, class_names, preprocessing, training=None):
        """A description with all of the network's arguments; `num_classes` follows from the class names."""
        arguments = full_arguments(architecture, **{**arguments, "num_classes": len(class_names)})
        return cls(architecture, arguments, tuple(class_names), preprocessing, training or {})

    def to_dict(self):
        """Plain values only, as they are stored in files."""
        plain = json.loads(json.dumps(asdict(self)))  # tuples become lists
        return {**plain, "preprocessing": self.preprocessing.to_dict()}

    @classmethod
    def from_dict(cls, values, path):
        """The inverse of `to_dict`; UserError naming `path` if something is missing or of the wrong kind."""
        try:
            kinds = {"architecture": str, "arguments": dict, "class_names": tuple, "training": dict}
            plain = json.loads(json.dumps({key: values[key] for key in (*kinds, "preprocessing")}))
            known = {key: kind(plain[key]) for key, kind in kinds.items()}
            if not all(isinstance(name, str) for name in (plain["architecture"], *known["class_names"])):
                raise TypeError("names must be text")
            description = cls(**known, preprocessing=Preprocessing(**plain["preprocessing"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:  # TypeError: also of json.dumps
            reason = f"{type(error).__name__}: {str(error)[:150]}"
            raise UserError(f"{path} does not describe its network ({reason}); create it again") from None
        classes = len(description.class_names)
        if description.arguments.get("num_classes") != classes:
            raise UserError(f"{path} names {classes} classes, unlike its network; create it again")
        return description

    @property
    def foreign(self):
        """Whether another program wrote the weights, so that class names and preprocessing are assumed."""
        return self.training.get("from") == FOREIGN

    @property
    def assumes_normalisation(self):
        """Whether the normalisation is assumed, and nobody has chosen it yet."""
        return self.foreign and "normalisation" not in self.training

    @property
    def validation_share(self):
        """The share of the training photos that was set apart for validation; 0 if there was none."""
        share = self.training.get("validation_share")
        return share if type(share) is float and 0 < share < 1 else 0.0

    def skeleton(self, path="the model"):
        """The network on the meta device, without memory for weights; UserError if it cannot be built."""
        try:
            with torch.device("meta"):
                return build(self.architecture, **self.arguments)
        except UserError as error:
            raise UserError(f"{path} describes no network that can be built: {error}") from None

    def build(self, state_dict, path="the model"):
        """The network in eval mode with these weights; UserError if they do not fit the architecture."""
        network = self.skeleton(path)
        channels = next(one.in_channels for one in network.modules() if isinstance(one, torch.nn.Conv2d))
        if channels != self.preprocessing.channels:
            photos = "RGB" if self.preprocessing.channels == 3 else "grey"
            raise UserError(
                f"{self.architecture} with {channels} input channel(s) cannot read {photos} photos; "
                f"build it with in_channels={self.preprocessing.channels}"
            )
        kinds = {name: tensor.dtype for name, tensor in network.state_dict().items()}
        try:
            network.load_state_dict(state_dict, assign=True)
        except RuntimeError as error:
            detail = " ".join(str(error).split("\n\t")[1:2]).strip()[:150]
            raise UserError(
                f"the weights in {path} do not fit {self.architecture} ({detail}); create the file again"
            ) from None
        for name, tensor in network.state_dict().items():
            if tensor.dtype != kinds[name] or not torch.isfinite(tensor).all():
                raise UserError(
                    f"tensor {name} in {path} is not {kinds[name]} or not finite; create it again"
                )
            if name.endswith("running_var") and (tensor < 0).any():
                raise UserError(f"tensor {name} in {path} has negative variances; use an undamaged file")
        try:
            check_size(network, self.preprocessing.size)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        return network.eval().requires_grad_(False)

    def check_data_channels(self, channels, path):
        """UserError if photos have another number of channels than this network was trained on."""
        if channels != self.preprocessing.channels:
            raise UserError(
                f"{path} takes photos of {self.preprocessing.channels} channel(s) and these have {channels}; "
                "use a file that was trained on photos like them"
            )
