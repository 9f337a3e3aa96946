"""Dynamic networks as research code writes them: each with its own way to hand over its gates.

Deliberately awkward, and deliberately without a word of robustdyn. Images are (B, 1, 28, 28).
"""

import torch
from torch import nn
from torch.nn import functional as F


class ExitList(nn.Module):
    """Returns a list of logits, one per exit; multiplies matrices outside of modules."""

    def __init__(self, classes=10):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(196, 32), nn.Linear(32, 24), nn.Linear(24, 16)])
        self.mixing = nn.Parameter(torch.eye(24))
        self.heads = nn.ModuleList([nn.Linear(width, classes) for width in (32, 24, 16)])
        for head, scale in zip(self.heads, (3, 6, 9), strict=True):
            nn.init.normal_(head.weight, std=scale)

    def forward(self, x):
        x = F.avg_pool2d(x, 2).flatten(1)
        outputs = []
        for k, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            x = F.relu(block(x))
            if k == 1:
                x = x @ self.mixing
            outputs.append(head(x))
        return outputs


class LateHeads(ExitList):
    """As ExitList, but the classifiers all run at the end, and can leave early for one sample."""

    def forward(self, x):
        x = F.avg_pool2d(x, 2).flatten(1)
        features = [x := F.relu(block(x)) for block in self.blocks]
        return [head(f) for head, f in zip(self.heads, features, strict=True)]

    def infer(self, x, threshold):
        x = F.avg_pool2d(x, 2).flatten(1)
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = F.relu(block(x))
            logits = head(x)
            if F.softmax(logits, 1).max() >= threshold:
                return logits
        return logits


class MaskTuple(nn.Module):
    """Returns (logits, masks, log-probabilities); mask k guards block k + 1; breaks at batch 1."""

    def __init__(self, blocks=3):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 4, 4)
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(blocks)])
        self.gates = nn.ModuleList([nn.Linear(4, 2) for _ in range(blocks - 1)])
        self.fc = nn.Linear(4 * 49, 10)
        for gate in self.gates:
            nn.init.normal_(gate.weight, std=8)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        masks, scores = [], []
        mask = None
        for k, block in enumerate(self.blocks):
            y = torch.relu(block(x))
            x = (
                y
                if mask is None
                else mask[:, None, None, None] * y + (1 - mask)[:, None, None, None] * x
            )
            if k < len(self.gates):
                pooled = F.adaptive_max_pool2d(x, (1, 2)).squeeze()  # (4, 2) at batch 1
                score = F.log_softmax(self.gates[k](pooled[:, :, 0] - pooled[:, :, 1]), dim=1)
                mask = (score[:, 1] > score[:, 0]).float()
                masks.append(mask)
                scores.append(score)
        return self.fc(x.view(x.size(0), -1)), masks, scores


class MetaDict(nn.Module):
    """Fills a dict that the caller hands in: spatial masks, boolean, one dilated for conv1."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.masker = nn.Conv2d(4, 1, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1)
        self.fc = nn.Linear(4, 10)
        nn.init.normal_(self.masker.weight, std=2)

    def forward(self, x, meta):
        x = torch.relu(self.stem(x))
        soft = self.masker(x - 0.3)
        hard = soft >= 0
        dilated = F.max_pool2d(hard.float(), 3, 1, 1) > 0.5
        meta["masks"].append({"std": (soft, hard), "dilate": dilated})
        y = torch.relu(self.conv1(x)) * dilated
        x = x + self.conv2(y) * hard
        return self.fc(x.mean((2, 3))), meta


class GatedConv(nn.Module):
    """A convolution whose output channels a gate switches; leaves the gate on itself."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.predict = nn.Linear(inputs, outputs)
        nn.init.normal_(self.predict.weight, std=8)

    def forward(self, x):
        x_mean = x.mean((2, 3))
        scores = torch.sigmoid(self.predict(x_mean - x_mean.mean(1, keepdim=True)))
        self.saliency = scores.clone()
        scores[scores >= 0.5] = 1  # in place: no gradient
        scores[scores < 0.5] = 0
        self.active = scores
        return torch.relu(self.conv(x)) * scores[:, :, None, None]


class AttributeGates(nn.Module):
    """Two gated convolutions in a row: the second reads only channels that the first computed."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 4, 4)
        self.one, self.two = GatedConv(4, 6), GatedConv(6, 8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.two(self.one(torch.relu(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class NoisyGate(nn.Module):
    """Two logits, with Gumbel noise that stays on in eval mode."""

    def __init__(self, width, noise):
        super().__init__()
        self.score = nn.Linear(width, 2)
        self.noise = noise
        nn.init.normal_(self.score.weight, std=8)

    def forward(self, x):
        left, right = x.mean(2).split((3, 4), dim=2)
        logits = self.score(left.mean(2) - right.mean(2))
        if self.noise:
            logits = logits - torch.empty_like(logits).exponential_().log()
        return F.one_hot(logits.argmax(1), 2)[:, 1]


class HookedGates(nn.Module):
    """Returns logits and batch means; its gates are seen only from outside."""

    def __init__(self, noise=True):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 4, 4)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"gate": NoisyGate(4, noise), "conv": nn.Conv2d(4, 4, 3, padding=1)})
            for _ in range(2)
        )
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        rates = []
        for layer in self.layers:
            keep = layer["gate"](x)
            rates.append(keep.float().mean())
            x = x + keep[:, None, None, None] * torch.relu(layer["conv"](x))
        return self.fc(x.mean((2, 3))), torch.stack(rates)


class Policy(nn.Module):
    """Looks once at the image; integer actions."""

    def __init__(self, blocks):
        super().__init__()
        self.fc = nn.Linear(49, blocks).cuda()
        nn.init.normal_(self.fc.weight, std=1)

    def forward(self, x):
        probabilities = torch.sigmoid(self.fc(F.avg_pool2d(x, 4).flatten(1) - 0.3))
        return (probabilities > 0.5).int(), probabilities


class PolicyNet(nn.Module):
    """Skips a block where the whole batch does, and returns probabilities."""

    def __init__(self, blocks=3):
        super().__init__()
        self.stem = nn.Linear(196, 16, device="cuda")
        self.blocks = nn.ModuleList([nn.Linear(16, 16) for _ in range(blocks)])
        self.fc = nn.Linear(16, 10)
        self.cuda()

    def forward(self, x, actions):
        x = torch.relu(self.stem(F.avg_pool2d(x, 2).flatten(1)))
        for k, block in enumerate(self.blocks):
            if actions[:, k].sum() == 0:
                continue
            x = x + actions[:, k : k + 1] * torch.relu(block(x))
        return F.softmax(self.fc(x), dim=1)


class Experts(nn.Module):
    """Sends each patch to the experts whose score is positive; returns (logits, balance loss)."""

    def __init__(self, experts=3):
        super().__init__()
        self.embed = nn.Linear(49, 8)
        self.gate = nn.Linear(8, experts)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(experts)])
        self.fc = nn.Linear(8, 10)
        nn.init.normal_(self.gate.weight, std=4)

    def forward(self, x):
        tokens = F.unfold(x, 7, stride=7).transpose(1, 2)  # (B, 16, 49)
        tokens = self.embed(tokens)
        scores = self.gate(tokens - tokens.mean(1, keepdim=True))
        out = tokens.clone()
        for e, expert in enumerate(self.experts):
            rows = scores[..., e] > 0  # (B, 16)
            if rows.any():
                out[rows] = out[rows] + scores[..., e][rows][:, None] * expert(tokens[rows])
        return self.fc(out.mean(1)), scores.var()


class TokenDrop(nn.Module):
    """A block of attention over 16 patches, of which a hook alone sees which are alive."""

    def __init__(self, width=8):
        super().__init__()
        self.embed = nn.Linear(49, width)
        self.score = nn.Linear(width, 1)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention = Attention()
        self.mlp = nn.Linear(width, width)
        self.fc = nn.Linear(width, 10)
        nn.init.normal_(self.score.weight, std=8)

    def forward(self, x):
        x = self.embed(F.unfold(x, 7, stride=7).transpose(1, 2))
        alive = (self.score(x - x.mean(1, keepdim=True)) > 0).data.float()  # (B, 16, 1)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + alive * self.attention(q, k, v, alive)
        x = x + alive * torch.relu(self.mlp(x))
        return self.fc(x.mean(1))


class Attention(nn.Module):
    def forward(self, q, k, v, alive):
        weights = (q @ k.transpose(1, 2)) + (alive.transpose(1, 2) - 1) * 1e4
        return F.softmax(weights, -1) @ v


class SkippingCell(nn.Module):
    """A recurrence over (B, T, 12) that copies its state at times; returns log-probabilities."""

    def __init__(self, width=6):
        super().__init__()
        self.cell = nn.GRUCell(12, width)
        self.update = nn.Linear(width, 1)
        self.fc = nn.Linear(width, 9)
        nn.init.normal_(self.update.weight, std=8)

    def forward(self, x):
        state = x.new_zeros(x.size(0), self.cell.hidden_size)
        taken = []
        for t in range(x.size(1)):
            u = torch.sigmoid(self.update(state) + x[:, t, :1] - 0.4)
            keep = torch.round(u)
            state = keep * self.cell(x[:, t], state) + (1 - keep) * state
            taken.append(u)
        return F.log_softmax(self.fc(state), 1), torch.cat(taken, 1)


class BitWidths(nn.Module):
    """Selects one of three layers per sample, but computes all; (logits, one-hot, scores)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(196, 16)
        self.control = nn.Linear(16, 3)
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.stem(F.avg_pool2d(x, 2).flatten(1)))
        scores = self.control(8 * (x - x.mean(1, keepdim=True)))
        onehot = F.one_hot(scores.argmax(1), 3)
        y = torch.stack([layer(x) for layer in self.layers], 1)
        return self.fc(torch.relu((onehot[:, :, None] * y).sum(1))), onehot, scores


class FrameStep(nn.Module):
    """Reads one row block of the image per call; the caller keeps the state and stops."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(196, 16)
        self.classify = nn.Linear(16, 10)
        nn.init.normal_(self.classify.weight, std=2)

    def forward(self, frame, state):
        features = torch.relu(self.encode(frame.flatten(1)))
        state = features if state is None else torch.maximum(state, features)
        return self.classify(state), state


class BatchExit(nn.Module):
    """Lets half of the batch leave at the first exit: what a sample gets depends on the others."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(196, 16)
        self.head1 = nn.Linear(16, 10)
        self.second = nn.Linear(16, 16)
        self.head2 = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.first(F.avg_pool2d(x, 2).flatten(1)))
        early = self.head1(x)
        entropy = -(F.softmax(early, 1) * F.log_softmax(early, 1)).sum(1)
        goes_on = entropy > entropy.median()
        late = self.head2(torch.relu(self.second(x)))
        return torch.where(goes_on[:, None], late, early), goes_on, entropy - entropy.median()
