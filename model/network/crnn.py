"""The CRNN. N images, C channels, H × W pixels, T time steps, E outputs of the encoder, K classes (0: blank)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TrialConfig
from model.data.alphabet import Alphabet


class CRNN(nn.Module):
    """Convolutional recurrent neural network: convolutions, a sequence encoder and a linear classifier per time step.

    Maps images (N, C, H, W), uint8 or float in 0…1, to logits (T, N, K), float32 unless autocast.
    """

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        network = config.network
        self.standardize = network.standardize
        self.cnn = nn.Sequential()
        channels = config.image.channels
        for block, (width, layers, kernel, pool) in enumerate(network.blocks, start=1):
            for layer in range(1, layers + 1):
                self.cnn.add_module(f"conv{block}{layer}", nn.Conv2d(channels, width, kernel, padding=kernel // 2))
                self.cnn.add_module(f"bn{block}{layer}", nn.BatchNorm2d(width))
                if layer == layers:  # before the ReLU: the same numbers with less work
                    self.cnn.add_module(f"pool{block}", nn.MaxPool2d(pool))
                self.cnn.add_module(f"relu{block}{layer}", nn.ReLU(inplace=True))
                channels = width
        self.cnn.add_module("dropout", nn.Dropout(network.dropout))
        rows, _ = network.feature_size(config.image.height, config.image.widest)
        self._windows = [pool[1] for _, _, _, pool in network.blocks]
        self.encoder = network.encoder.build(channels * rows)
        self.fc = nn.Linear(network.encoder.outputs(channels * rows), Alphabet(config.image.characters).classes)
        if network.initialization == "orthogonal":
            self.apply(_leave_plateau_soon)

    def time_steps(self, widths: Tensor | None) -> Tensor | None:
        """T of each image, (N,), for images of these widths (N,) without padding; None for None: no padding."""
        if widths is None:
            return None
        for window in self._windows:
            widths = widths // window
        return widths.long()

    def forward(self, images: Tensor, widths: Tensor | None = None) -> Tensor:
        """Logits of images; `widths` (N,) are those without padding, None if there is no padding."""
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        if widths is not None:
            x = _without_padding(x, widths.to(x.device, non_blocking=True), self.standardize)
        elif self.standardize:
            x = F.layer_norm(x, x.shape[1:])  # each image to mean 0, standard deviation 1
        x = self.cnn(x)  # (N, C', H', T)
        x = x.flatten(1, 2).permute(2, 0, 1)  # (T, N, C'·H')
        x = self.encoder(x)  # (T, N, E)
        if isinstance(x, tuple):  # recurrent modules return (output, last state)
            x = x[0]
        logits: Tensor = self.fc(x)  # (T, N, K)
        return logits


def _without_padding(x: Tensor, widths: Tensor, standardize: bool) -> Tensor:
    """Sets padding to 0, and with `standardize` each image without it to mean 0, standard deviation 1."""
    inside = (torch.arange(x.shape[3], device=x.device) < widths[:, None])[:, None, None, :]  # (N, 1, 1, W)
    if not standardize:
        return x * inside
    count = (x.shape[1] * x.shape[2] * widths)[:, None, None, None]
    centred = (x - (x * inside).sum((1, 2, 3), keepdim=True) / count) * inside
    variance = centred.square().sum((1, 2, 3), keepdim=True) / count
    return centred * (variance + 1e-5).rsqrt()  # 1e-5 as in `layer_norm`


def _leave_plateau_soon(module: nn.Module) -> None:
    """Initialises a module's weights so that training soon leaves CTC's plateau, where all outputs are blanks.

    Convolutions are Kaiming (He et al. 2015), recurrent weights orthogonal, input weights and linear layers Xavier.
    An LSTM's forget gate starts open (bias 1; Jozefowicz et al. 2015, section 2.2). Attention keeps torch's Xavier
    weights.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LSTM | nn.GRU):
        for name, parameter in module.named_parameters():
            gates = parameter.data.chunk(4 if isinstance(module, nn.LSTM) else 3)  # input, forget, cell, output
            for gate in gates:
                if name.startswith("weight_hh"):
                    nn.init.orthogonal_(gate)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(gate)
                else:
                    nn.init.zeros_(gate)
            if isinstance(module, nn.LSTM) and name.startswith("bias_ih"):
                nn.init.ones_(gates[1])
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
