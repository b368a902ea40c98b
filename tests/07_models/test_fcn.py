"""The fully convolutional networks on VGG: FCN, with a feature pyramid, with attention, with a CRF behind it."""

from __future__ import annotations

import pytest
import torch
from convolutions import behind_the_encoder
from network_contract import Network, count_parameters
from torch import nn

from pipeline.models import build_model
from pipeline.models.networks.crf_rnn import MeanField
from pipeline.models.networks.fcn8s import FCN8s
from pipeline.training.optimization.parameter_groups import parameter_groups


class FCN(Network):
    """fcn32s, fcn16s and fcn8s: what they share; `reads` are the pooled maps whose scores are added."""

    options = {"width": 0.125, "dropout": 0.1}
    reads: tuple[str, ...]

    def test_the_scores_of_its_levels_are_added(self):
        scores = [one for one in behind_the_encoder(self.build()) if one.kernel == 1]
        assert [one.levels[0] for one in scores] == ["C6", *self.reads]
        assert [one.size[0] for one in scores] == [4, 8, 16][: len(scores)]

    def test_fc6_and_fc7_are_convolutions(self):
        with torch.device("meta"):
            network = build_model(self.name, num_classes=21)
        convolutions = [m for m in network.encoder.fully_connected if isinstance(m, nn.Conv2d)]
        assert [(m.kernel_size, m.out_channels) for m in convolutions] == [((7, 7), 4096), ((1, 1), 4096)]

    def test_upsampling_begins_as_bilinear(self):
        for module in self.build().modules():
            if isinstance(module, nn.ConvTranspose2d):
                ramp = torch.arange(8.0).expand(1, module.in_channels, 8, 8)
                doubled = module(ramp)[0, :, 2:-2, 2:-2]
                torch.testing.assert_close(doubled, (torch.arange(16.0) / 2 - 0.25)[2:-2].expand_as(doubled))


class TestFCN32s(FCN):
    name = "fcn32s"
    reads = ()
    overfit_zoom = 2


class TestFCN16s(FCN):
    name = "fcn16s"
    reads = ("C4",)


class TestFCN8s(FCN):
    name = "fcn8s"
    reads = ("C4", "C3")


class TestFPNFCN(Network):
    name = "fpn_fcn"
    options = {"width": 0.125}

    @pytest.mark.parametrize(("backbone", "convolutions"), [("vgg19", [2, 2, 4, 4, 4]), ("vgg16", [2, 2, 3, 3, 3])])
    def test_its_stages_have_as_many_convolutions(self, backbone, convolutions):
        stages = self.build(backbone=backbone).encoder.stages
        assert [sum(isinstance(m, nn.Conv2d) for m in stage) for stage in stages] == convolutions

    def test_the_pyramid_stands_ahead_of_the_scores(self):
        levels = ["C1", "C2", "C3", "C4", "C5"]  # pool1 .. pool5
        calls = behind_the_encoder(self.build())
        smoothing = [(one.levels, one.size) for one in calls if one.kernel == 3]
        assert smoothing == [(tuple(levels[i:]), (64 >> i, 96 >> i)) for i in (3, 2, 1, 0)]
        scores = calls[-5:]  # K channels each, read off the pyramid
        assert [(one.levels, one.size) for one in scores] == [
            (tuple(levels[i:]), (64 >> i, 96 >> i)) for i in (4, 3, 2, 1, 0)
        ]


class TestAttentionFCN(Network):
    name = "attention_fcn"
    options = {"width": "slim"}

    def test_nothing_is_pooled_between_the_stages(self):
        network = self.build().eval()
        program = torch.export.export(network, (torch.rand(1, 3, 64, 96),))
        called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert not [name for name in called if "pool" in name or "interpolate" in name or "upsample" in name]
        assert [down[0].stride for down in network.downs] == [(2, 2)] * 5
        means = [node for node in program.graph.nodes if str(node.target) == "aten.mean.dim"]
        assert len(means) == 1 + 5  # the image-level branch, and the attention of each decoder level

    def test_attention_reduces_sixteenfold(self):
        units = [m for m in self.build(width=1.0).modules() if isinstance(m, nn.Linear)]
        shapes = [(m.in_features, m.out_features) for m in units]
        assert shapes == [(128, 8), (8, 128)] * 2 + [(64, 4), (4, 64)] * 3
        slim = [m for m in self.build().modules() if isinstance(m, nn.Linear)]
        assert [m.out_features for m in slim] == [2, 32] * 2 + [1, 16] * 3

    def test_skips_cost_little(self):
        with_skips = count_parameters(self.name, width="slim")
        without = count_parameters(self.name, width="slim", skips=False)
        assert 0 < with_skips / without - 1 <= 0.032

    @pytest.mark.parametrize("option", ["attention", "skips"])
    def test_its_ablations_run(self, option):
        plain = self.build(**{option: False})
        with torch.no_grad():
            assert plain.eval()(torch.rand(1, 3, 65, 97)).shape == (1, 21, 65, 97)
        assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in self.build().parameters())


class TestCRFRNN(Network):
    name = "crf_rnn"
    options = {"width": 0.125, "dropout": 0.0}

    def test_it_is_fcn8s_with_a_crf(self):
        with torch.no_grad():
            network, x = self.build(3).eval(), torch.rand(1, 3, 65, 97)
            twin = build_model("fcn8s", num_classes=3, crf=True, **self.options).eval()
            twin.load_state_dict(network.state_dict())
            torch.testing.assert_close(twin(x), network(x))
            plain = network.network(x)
            assert isinstance(network.network, FCN8s) and not torch.equal(network(x), plain)

    def test_classes_follow_the_edges_of_the_picture(self):
        """Where the network does not know (columns 28 to 43), the picture's edge (at 32) says where a class ends."""
        x = torch.zeros(1, 3, 64, 64)
        x[..., 32:] = 2
        column = torch.arange(64).expand(64, 64)
        known = (column >= 44).float() - (column < 28).float()
        logits = 2 * torch.stack([-known, known])[None]
        with torch.no_grad():
            right, blind = (
                (MeanField(2)(logits, seen).argmax(1)[0] == (column >= 32)).float().mean()
                for seen in (x, torch.zeros_like(x))
            )
        assert right > 0.98 > 0.94 > blind  # without colours the class ends half-way

    def test_noise_is_quieted(self):
        torch.manual_seed(1)
        logits = torch.zeros(1, 2, 64, 64)
        logits[:, 1] = 0.5
        noisy = logits + torch.randn(logits.shape)
        with torch.no_grad():
            before, after = (
                (one.argmax(1) == 1).float().mean() for one in (noisy, MeanField(2)(noisy, torch.zeros(1, 3, 64, 64)))
            )
        assert before < 0.7 < 0.8 < after

    @pytest.mark.parametrize("model", ["lightweight", "torchvision:lraspp_mobilenet_v3_large", "pspnet"])
    def test_it_works_behind_any_network(self, model):
        options = {"backbone": "mobilenet_v2", "aux_head": True} if model == "pspnet" else {}
        network = build_model(model, num_classes=3, in_channels=4, crf=True, **options).train()
        logits = network(torch.rand(2, 4, 65, 97))
        main = logits[0] if isinstance(logits, tuple) else logits
        assert main.shape == (2, 3, 65, 97) and isinstance(logits, tuple) == (model == "pspnet")
        main.square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in network.crf.parameters())
        rates = {group["base_rate"] for group in parameter_groups(network, 1.0, 0.5, 0.0)}
        assert rates == {1.0, 0.5}  # the backbone is still known by its name
