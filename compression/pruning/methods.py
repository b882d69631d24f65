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
            advice = "use best.pt of a training script, or --mode lowrank"
            raise UserError(f"{model.path} has no BN to rank channels by; {advice}")
        self.model, self.network, self.options = model, network, options
        self.coupling = Coupling(network)
        self.scope = read_scope(options.scope, len(self.coupling.sets))
        if not self._choose(network, 1):
            raise UserError(
                f"there is nothing to prune in --scope {options.scope}; "
                "--scope all --dry-run shows which stages can be pruned and why the others cannot"
            )
        with torch.device("meta"):
            self.shape = build(model.description.architecture, **model.description.arguments)

    def _choose(self, network, fraction, index=1):
        generator = torch.Generator().manual_seed(1_000_003 * self.options.seed + index)
        rules = self.options.criterion, self.options.ranking, self.options.floor
        return choose(self.coupling, network, fraction, self.scope, *rules, generator)

    def arguments(self, fraction):
        """The network's arguments at a fraction, by the current gammas."""
        described, kept = self.model.description, self._choose(self.network, fraction)
        return compact(described.architecture, described.arguments, self.shape, self.coupling, kept)[0]

    def steps(self):
        """The fractions at which a layer, or with global ranking the sum of them, loses a channel."""
        counts = [len(kept) for kept in self._choose(self.network, 1).values()]
        return _steps([sum(counts)] if self.options.ranking == "global" else counts)

    def cut(self, model, fraction, index, early=None):
        """(arguments, network) of the model pruned to a fraction of the original channels, in round `index`.

        early: a Model of the same shape whose weights are used instead of the model's own.
        """
        network, described = model.build(), model.description
        kept = self._choose(network, fraction, index)
        source = early.build() if early else network
        shape = described.architecture, described.arguments
        return compact(*shape, source, self.coupling, kept, absorb=not early)

    def table(self, fractions):
        """Lines of text: every stage with its widths, round by round, and what happens to its constants."""
        rounds = [self._choose(self.network, fraction) for fraction in fractions]
        yield f"{'stage':>5}  {'layer':22}{'channels':>9}{_heads(rounds)}"
        for index, channels in enumerate(self.coupling.sets):
            if channels not in rounds[0]:
                fate = f"kept: {channels.stays or 'not in --scope'}"
            elif channels.dropped:
                fate = f"constants dropped: {channels.dropped}"
            else:
                fate = "constants absorbed exactly"
            if channels in rounds[0] and channels.unit > 1:
                fate += f", in units of {channels.unit}"
            counts = [len(kept[channels]) if channels in kept else channels.count for kept in rounds]
            sizes = "".join(f"{count:>9}" for count in counts)
            yield f"{index:>5}  {channels.name:22}{channels.count:>9}{sizes}  {fate}"
        if self.options.ranking == "global" and len(fractions) > 1:
            yield "global ranking: the table uses the current gammas; rounds after the first use their own"


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
        return _steps(counts)

    def cut(self, model, fraction, index, early=None):
        """(arguments, network) of the model at a fraction of the full ranks, by truncated SVD."""
        arguments, whole = self.arguments(fraction), self._whole(model, model.build())
        network = factorise(whole, arguments["ranks"], svd=True)
        return arguments, network.eval().requires_grad_(False)

    def table(self, fractions):
        """Lines of text: every layer with its ranks, round by round."""
        rounds = [choose_ranks(self.whole, fraction, self.order) for fraction in fractions]
        yield f"{'layer':29}{'full rank':>9}{_heads(rounds)}"
        for name, layer in factorisable(self.whole).items():
            sizes = "".join(f"{ranks.get(name, 'full'):>9}" for ranks in rounds)
            fate = "  full: two factors would be larger" if any(name not in ranks for ranks in rounds) else ""
            yield f"{name:29}{full_rank(layer):>9}{sizes}{fate}"


def _steps(counts):
    """The fractions at which one of these counts falls."""
    return {step / count for count in counts for step in range(1, count + 1)}


def _heads(rounds):
    return "".join(f"{f'round {index}':>9}" for index in range(1, len(rounds) + 1))
