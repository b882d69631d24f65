"""Two pruning methods with the same interface: channels by their BN gamma, or layers in two factors.

Both are built from a `Model`, its network and the options of prune.py. A fraction is a share of the original
channels, or of the layers' full ranks.
"""

import torch

from compression.command_line import UserError
from compression.networks.lowrank import choose_ranks, directions, factorisable, factorise, full_rank, merge
from compression.networks.registry import build
from compression.pruning.channels import choose, compact, read_scope
from compression.pruning.coupling import NORMS, Coupling


class ByGamma:
    """Channel pruning: the pruned network for a fraction of the original channels."""

    def __init__(self, model, network, options):
        if not any(isinstance(module, NORMS) for module in network.modules()):
            raise UserError(
                f"{model.path} has no BN whose gamma could rank channels; "
                "use a checkpoint of a training script, or --mode lowrank"
            )
        self.model, self.network, self.options = model, network, options
        self.coupling = Coupling(network)
        self.originals = [channels.count for channels in self.coupling.sets]
        self.scope = read_scope(options.scope, len(self.originals))
        if not self._choose(self.coupling, network, 1, 1):
            raise UserError(
                f"there is nothing to prune in --scope {options.scope}; "
                "--scope all --dry-run shows which stages can be pruned and why the others cannot"
            )
        with torch.device("meta"):
            self.shape = build(model.description.architecture, **model.description.arguments)

    def _choose(self, coupling, network, fraction, index):
        generator = torch.Generator().manual_seed(1_000_003 * self.options.seed + index)
        return choose(
            coupling,
            network,
            fraction,
            self.originals,
            self.scope,
            self.options.criterion,
            self.options.ranking,
            self.options.floor,
            generator,
        )

    def arguments(self, fraction):
        """The network's arguments at a fraction, by the current gammas."""
        kept = self._choose(self.coupling, self.network, fraction, 1)
        return compact(
            self.model.description.architecture,
            self.model.description.arguments,
            self.shape,
            self.coupling,
            kept,
        )[0]

    def steps(self):
        """The fractions at which a layer, or with global ranking the sum of them, loses a channel."""
        counts = [len(kept) for kept in self._choose(self.coupling, self.network, 1, 1).values()]
        return {
            step / count
            for count in ([sum(counts)] if self.options.ranking == "global" else counts)
            for step in range(1, count + 1)
        }

    def cut(self, model, fraction, index, early=None):
        """(arguments, network) of the model pruned to a fraction of the original channels; index: of the
        round.

        early: a Model of the same shape whose weights are used instead of the model's own.
        """
        network = model.build()
        coupling = self.coupling.carried_to(network)
        kept = self._choose(coupling, network, fraction, index)
        described = model.description
        source = early.build() if early else network
        return compact(described.architecture, described.arguments, source, coupling, kept, absorb=not early)

    def table(self, fractions):
        """Lines of text: every stage with its widths, round by round, and what happens to its constants."""
        rounds = [self._choose(self.coupling, self.network, fraction, 1) for fraction in fractions]
        yield f"{'stage':>5}  {'layer':22}{'channels':>9}" + "".join(
            f"{f'round {index}':>9}" for index in range(1, len(rounds) + 1)
        )
        for index, channels in enumerate(self.coupling.sets):
            if channels in rounds[0]:
                fate = (
                    f"constants dropped: {channels.dropped}"
                    if channels.dropped
                    else "constants absorbed exactly"
                )
                fate += f", in units of {channels.unit}" if channels.unit > 1 else ""
            else:
                fate = f"kept: {channels.stays or 'not in --scope'}"
            sizes = "".join(
                f"{len(kept[channels]) if channels in kept else channels.count:>9}" for kept in rounds
            )
            yield f"{index:>5}  {channels.name:22}{channels.count:>9}{sizes}  {fate}"
        if self.options.ranking == "global" and len(fractions) > 1:
            yield (
                "global ranking: the widths after round 1 depend on the gammas at that time; the table uses "
                "the current gammas"
            )


class ByRank:
    """Low-rank layers: the factorised network for a fraction of the layers' full ranks."""

    def __init__(self, model, network, options):
        self.description = model.description
        self.whole = self._whole(model, network)
        self.order = directions(self.whole) if options.ranking == "global" else None

    @staticmethod
    def _whole(model, network):
        """The network with every pair of factors multiplied."""
        whole = build(model.description.architecture, **{**model.description.arguments, "ranks": {}})
        whole.load_state_dict(merge(network))
        return whole

    def arguments(self, fraction):
        """The network's arguments at a fraction."""
        return {**self.description.arguments, "ranks": choose_ranks(self.whole, fraction, self.order)}

    def steps(self):
        """The fractions at which a layer, or with global ranking the sum of them, loses a rank."""
        counts = [len(self.order)] if self.order else map(full_rank, factorisable(self.whole).values())
        return {step / count for count in counts for step in range(1, count + 1)}

    def cut(self, model, fraction, index, early=None):
        """(arguments, network) of the model at a fraction of the full ranks, by truncated SVD."""
        arguments = self.arguments(fraction)
        return arguments, factorise(
            self._whole(model, model.build()), arguments["ranks"], svd=True
        ).eval().requires_grad_(False)

    def table(self, fractions):
        """Lines of text: every layer with its ranks, round by round."""
        rounds = [choose_ranks(self.whole, fraction, self.order) for fraction in fractions]
        yield f"{'layer':29}{'full rank':>9}" + "".join(
            f"{f'round {index}':>9}" for index in range(1, len(rounds) + 1)
        )
        for name, layer in factorisable(self.whole).items():
            sizes = "".join(f"{ranks.get(name, 'full'):>9}" for ranks in rounds)
            fate = "  full: two factors would be larger" if any(name not in ranks for ranks in rounds) else ""
            yield f"{name:29}{full_rank(layer):>9}{sizes}{fate}"
