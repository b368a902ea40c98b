"""One test for every network: a subclass of `Network` says how to build it small, and the same cases run on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.losses import cross_entropy_dice, with_auxiliary
from pipeline.models import MODELS, build_model
from pipeline.models.crf_rnn import MeanField
from pipeline.models.espnetv2 import EESP
from pipeline.models.fcn8s import FCN8s
from pipeline.models.fold import fold_batch_norm
from pipeline.models.unet import mirror
from pipeline.optimizer import parameter_groups

TESTED: dict[str, type[Network]] = {}  # name in the table -> the class below


@dataclass(frozen=True)
class Size:
    """Parameters at 21 classes as a paper gives them."""

    model: str
    options: dict[str, Any]
    parameters: float
    tolerance: float  # share


MIB = 2**20 / 4  # float32 parameters

SIZES = [  # systems.md, section by section
    Size("lightweight", {}, 23.2 * MIB, 0.02),
    Size("pspnet", {}, 178 * MIB, 0.03),
    Size("fcn8s", {"slim_head": True}, 91.3 * MIB, 0.03),
    Size("unet", {"encoder": "vgg16"}, 94.9 * MIB, 0.03),
    Size("attention_fcn", {"width": "slim"}, 1.63e6, 0.03),
]


class Network:
    """The cases of one network; `name` and `options` build it, small where the network is heavy.

    What is particular to its structure stands as tests of the subclass.
    """

    name: str
    options: dict[str, Any] = {}
    overfit_steps = 60
    norms_left = 0  # batch norms that follow no single convolution, so folding leaves them
    overfit_zoom = 1  # enlarges the batch's shapes, where the scores' grid is too coarse for them

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "name"):  # not what a family shares
            TESTED[cls.name] = cls

    def build(self, num_classes: int = 21, in_channels: int = 3, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        return build_model(self.name, num_classes=num_classes, in_channels=in_channels, **{**self.options, **options})

    @pytest.mark.parametrize(("bands", "classes"), [(1, 2), (3, 21), (5, 2)])
    def test_logits_have_the_size_of_the_input(self, bands, classes):
        network = self.build(classes, bands).eval()
        with torch.no_grad():
            assert network(torch.rand(2, bands, 97, 131)).shape == (2, classes, 97, 131)

    def test_a_gradient_reaches_every_parameter(self):
        network = self.build(3).train()
        torch.manual_seed(1)
        logits = network(torch.rand(2, 3, 65, 97))
        every = logits if isinstance(logits, tuple) else (logits,)
        assert all(one.shape == (2, 3, 65, 97) for one in every)
        sum(one.square().mean() for one in every).backward()
        without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without

    def test_one_batch_can_be_overfitted(self):
        network = self.build(3).train()
        target = torch.zeros(2, 64, 96, dtype=torch.long)
        target[0, 16:40, 24:72] = 1
        target[1, :, 60:] = 2
        target = target.repeat_interleave(self.overfit_zoom, 1).repeat_interleave(self.overfit_zoom, 2)
        torch.manual_seed(1)
        x = torch.eye(3)[target].permute(0, 3, 1, 2)
        x = x + 0.1 * torch.randn(x.shape)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        for _ in range(self.overfit_steps):
            logits = network(x)
            miou = mean_iou(logits[0] if isinstance(logits, tuple) else logits, target)
            if miou > 0.95:
                return
            optimizer.zero_grad()
            with_auxiliary(cross_entropy_dice, logits, target, weight=0.4).backward()
            optimizer.step()
        pytest.fail(f"mIoU {miou:.3f} after {self.overfit_steps} steps")

    def test_it_trains_in_bfloat16(self):
        network = self.build(2).train()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(torch.rand(2, 3, 65, 97))
        assert logits.dtype == torch.bfloat16
        logits.float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in network.parameters())

    def test_a_saved_network_gives_the_same_logits(self):
        first, second = self.build(2).eval(), self.build(2).eval()
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.zero_()
            second.load_state_dict(first.state_dict())
            x = torch.rand(1, 3, 65, 97)
            assert torch.equal(first(x), second(x))

    def test_folding_batch_norm_changes_no_logit_by_much(self):
        network = self.build(4).train()
        with torch.no_grad():
            network(torch.rand(4, 3, 65, 97))  # running statistics that are no identity
            network.eval()
            folded = fold_batch_norm(network, torch.rand(1, 3, 64, 64))
            x = torch.rand(1, 3, 65, 97)
            torch.testing.assert_close(folded(x), network(x), rtol=1e-3, atol=1e-3)
        before, left = (sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (network, folded))
        assert before > left == self.norms_left

    def test_it_can_be_exported(self):
        network = self.build(2).eval()
        x = torch.rand(1, 3, 64, 96)
        program = torch.export.export(network, (x,))
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), network(x))

    def test_it_compiles_to_one_graph(self):
        network = self.build(2).eval()
        x = torch.rand(1, 3, 64, 96)
        torch.compiler.reset()
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), network(x))

    def test_a_picture_too_small_is_named(self):
        network = self.build(2).eval()
        smallest_px = getattr(network, "smallest_px", 1)
        with torch.no_grad():
            assert network(torch.rand(1, 3, smallest_px, smallest_px)).shape[-2:] == (smallest_px, smallest_px)
            if smallest_px > 1:
                with pytest.raises(InputError, match=f"too small.*expected {smallest_px} px or more a side"):
                    network(torch.rand(1, 3, smallest_px, smallest_px - 1))


class AuxiliaryHeads:
    """The cases of a network that has `aux_heads` further heads with `aux_head=True`."""

    aux_heads: int

    def test_auxiliary_heads_speak_in_training_only(self):
        network = self.build(3, aux_head=True)
        x = torch.rand(2, 3, 65, 97)
        every = network.train()(x)
        assert [one.shape for one in every] == [(2, 3, 65, 97)] * (1 + self.aux_heads)
        for i in range(1, len(every)):
            assert not torch.equal(every[0], every[i])
        sum(one.square().mean() for one in every).backward()
        assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        with torch.no_grad():
            assert network.eval()(x).shape == (2, 3, 65, 97)


class TestLightweight(Network):
    name = "lightweight"

    def test_without_feature_enhancement_it_is_smaller(self):
        assert count_parameters("lightweight", feature_enhancement=False) < count_parameters("lightweight")

    @pytest.mark.slow
    def test_inductor_compiles_it(self):
        network = self.build(2).eval()
        x = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(network, fullgraph=True)(x), network(x), rtol=1e-3, atol=1e-4)


class TestMultilevelDeepLab(Network):
    name = "multilevel_deeplab"
    options = {"backbone": "mobilenet_v2", "channels": 32}

    @pytest.mark.parametrize("rates", [(6, 12, 18), (2, 3, 5)])
    def test_each_branch_reads_a_level_of_its_own(self, rates):
        pyramid = behind_the_encoder(self.build(rates=rates))[:4]
        assert {one.levels: (one.kernel, one.dilation) for one in pyramid} == {
            ("C5",): (1, 1),
            ("C4",): (3, rates[0]),
            ("C3",): (3, rates[1]),
            ("C2",): (3, rates[2]),
        }
        assert {one.size for one in pyramid} == {(8, 12)}

    @pytest.mark.parametrize("fusion", ["add", "concat", "gated"])
    def test_the_decoder_carries_depth_into_every_level(self, fusion):
        every = ("C2", "C3", "C4", "C5")
        convolutions = behind_the_encoder(self.build(fusion=fusion))
        projected = next(i for i, one in enumerate(convolutions) if one.levels == every)
        decoder = convolutions[projected + 1 : -1]  # without the head
        laterals = [(one.levels[0], one.size) for one in decoder if one.levels != every]
        refined = [one.size for one in decoder if one.levels == every and one.kernel == 3]
        assert laterals == [("C4", (8, 12)), ("C3", (16, 24)), ("C2", (32, 48))]
        assert refined == [(8, 12), (16, 24), (32, 48)]

    @pytest.mark.parametrize(
        ("pooling", "levels"), [("none", []), ("deep", ["C5"]), ("every_level", ["C2", "C3", "C4", "C5"])]
    )
    def test_global_pooling_reads_what_is_asked(self, pooling, levels):
        pooled = [one for one in behind_the_encoder(self.build(global_pooling=pooling)) if one.size == (1, 1)]
        assert [one.levels for one in pooled] == [(level,) for level in levels]

    def test_its_ablations_differ_in_what_they_say(self):
        parameters = {fusion: count_parameters(self.name, fusion=fusion) for fusion in ("add", "concat", "gated")}
        norms = 3 * (2 * 256 - 256)  # batch norm has two parameters a channel, the gate's bias one
        assert parameters["concat"] - parameters["gated"] == norms
        assert parameters["concat"] - parameters["add"] == 3 * (2 * 256 * 256 + 2 * 256)

    @pytest.mark.slow
    @pytest.mark.parametrize("backbone", ["resnet101", "resnet50"])
    def test_a_resnet_at_full_width_gives_logits(self, backbone):
        network = self.build(backbone=backbone, channels=256).eval()
        with torch.no_grad():
            assert network(torch.rand(1, 3, 97, 131)).shape == (1, 21, 97, 131)


class TestDeepLabV3Plus(Network):
    name = "deeplabv3plus"
    options = {"backbone": "mobilenet_v2"}

    @pytest.mark.parametrize("rates", [(6, 12, 18), (6, 8, 12)])
    def test_the_atrous_convolutions_are_depthwise_separable(self, rates):
        convolutions = behind_the_encoder(self.build(rates=rates))
        depthwise = [i for i, one in enumerate(convolutions) if one.kernel == 3 and one.levels == ("C5",)]
        assert [convolutions[i].dilation for i in depthwise] == list(rates)
        assert {(convolutions[i].groups, convolutions[i].channels) for i in depthwise} == {(320, 320)}
        pointwise = [convolutions[i + 1] for i in depthwise]
        assert {(one.kernel, one.groups, one.channels, one.levels) for one in pointwise} == {(1, 1, 256, ("C5",))}

    def test_the_decoder_adds_48_channels_at_stride_4(self):
        convolutions = behind_the_encoder(self.build())
        (low_level,) = [one for one in convolutions if one.levels == ("C2",)]
        assert (low_level.kernel, low_level.channels, low_level.size) == (1, 48, (32, 48))
        after = [one for one in convolutions if one.levels == ("C2", "C5")]
        assert after[0].groups == 256 + 48
        assert {one.size for one in after} == {(32, 48)}


class TestPSPNet(AuxiliaryHeads, Network):
    name = "pspnet"
    options = {"backbone": "mobilenet_v2"}
    aux_heads = 1

    @pytest.mark.parametrize("bins", [(1, 2, 3, 6), (1, 4)])
    def test_the_pyramid_has_its_bins(self, bins):
        *pyramid, head, last = behind_the_encoder(self.build(bins=bins))
        assert [one.size for one in pyramid] == [(side, side) for side in bins]
        assert {(one.levels, one.kernel, one.channels) for one in pyramid} == {(("C5",), 1, 320 // len(bins))}
        assert (head.size, last.size) == ((16, 24), (16, 24))  # output stride 8

    @pytest.mark.slow
    def test_the_whole_network_gives_logits(self):
        network = build_model("pspnet", num_classes=21).eval()
        with torch.no_grad():
            assert network(torch.rand(1, 3, 97, 131)).shape == (1, 21, 97, 131)


class TestBiSeNet(AuxiliaryHeads, Network):
    name = "bisenet"
    aux_heads = 2

    def test_the_spatial_path_stands_beside_the_encoder(self):
        spatial = [one for one in behind_the_encoder(self.build()) if not one.levels]
        assert [one.size for one in spatial] == [(64, 96), (32, 48), (16, 24), (16, 24)]
        assert [one.channels for one in spatial] == [64, 64, 64, 128]

    def test_attention_refines_the_last_two_stages(self):
        pooled = [one for one in behind_the_encoder(self.build()) if one.size == (1, 1)]
        assert sorted((one.levels, one.channels) for one in pooled) == [
            (("C4",), 128),  # refinement at stride 16
            (("C4", "C5"), 64),  # the fusion's two
            (("C4", "C5"), 256),
            (("C5",), 128),  # refinement at stride 32, and the global average
            (("C5",), 128),
        ]


class TestESPNetV2(AuxiliaryHeads, Network):
    name = "espnetv2"
    options = {"width": 0.5, "dropout": 0.0}
    aux_heads = 1
    norms_left = 3 + 3 + 7 + 1  # one a unit, on the hierarchical sum

    def test_every_3x3_is_depthwise_but_the_stem_and_the_pictures(self):
        network = self.build(in_channels=5)
        wide = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        dense = [(m.in_channels, m.out_channels) for m in wide if m.groups != m.in_channels]
        assert dense == [(5, 16), *[(5, 5)] * 3]
        dilations = [m.dilation[0] for m in wide if m.groups == m.in_channels]
        units_8, units_16 = [1, 2, 3, 4], [1, 1, 2, 3]
        assert dilations == [*units_8 * 2, *units_8 * 3, *units_8, *units_16 * 7, *units_16, *[1] * 4]

    def test_each_branch_is_added_to_the_next(self):
        unit = EESP(16, 32, rates=(1, 2, 3, 4)).eval()
        made, merged = [], []
        for branch in unit.branches:
            branch.register_forward_hook(lambda module, inputs, output: made.append(output))
        unit.activate.register_forward_pre_hook(lambda module, inputs: merged.append(inputs[0]))
        with torch.no_grad():
            unit(torch.rand(1, 16, 20, 20))
        torch.testing.assert_close(merged[0], torch.stack(made).cumsum(0).transpose(0, 1).flatten(1, 2))

    def test_it_takes_weights_of_its_encoder(self, tmp_path):
        state = self.build().encoder.state_dict()
        torch.save(state, tmp_path / "encoder.pth")
        torch.manual_seed(5)
        network = build_model(self.name, num_classes=2, **self.options, backbone_weights=str(tmp_path / "encoder.pth"))
        assert all(torch.equal(value, state[key]) for key, value in network.encoder.state_dict().items())


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


class TestSegNet(Network):
    name = "segnet"
    options = {"width": 0.125}

    def test_what_was_pooled_goes_back_to_where_it_stood(self):
        """Behind each unpooling only the places of the maxima are not 0, and there the maxima stand."""
        network = self.build(3).eval()
        pooled: list[torch.Tensor] = []
        unpooled: list[torch.Tensor] = []
        for stage in network.encoder.stages:
            stage.register_forward_hook(lambda module, inputs, output: pooled.append(output))
        for level in network.decoder:
            level.register_forward_pre_hook(lambda module, inputs: unpooled.append(inputs[0]))
        with torch.no_grad():
            network(torch.rand(1, 3, 64, 96))
        assert [one.shape for one in reversed(unpooled)] == [one.shape for one in pooled]
        for before, after in zip(pooled, reversed(unpooled), strict=True):
            _, places = torch.nn.functional.max_pool2d(before, 2, return_indices=True)
            elsewhere = torch.ones_like(before).flatten(2).scatter(2, places.flatten(2), 0.0).bool()
            assert not after.flatten(2)[elsewhere].any() and after.any()

    def test_the_decoder_mirrors_vgg16(self):
        levels = self.build(width=1.0).decoder
        assert [len(level) for level in levels] == [3, 3, 3, 2, 1]
        assert [level[-1][0].out_channels for level in levels] == [512, 256, 128, 64, 64]


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


class TestUNet(Network):
    name = "unet"
    options = {"width": 0.125}

    def test_each_level_concatenates_the_copy_of_its_size(self):
        calls = behind_the_encoder(self.build())
        every = ["C1", "C2", "C3", "C4", "C5"]
        assert [(one.levels, one.kernel, one.size, one.channels) for one in calls[:-1]] == [
            (tuple(every[i:]), 3, (128 >> i, 192 >> i), 8 << i) for i in (3, 3, 2, 2, 1, 1, 0, 0)
        ]

    @pytest.mark.parametrize(("encoder", "channels"), [("plain", [64, 128, 256, 512, 1024]), ("vgg16", [512] * 5)])
    def test_channels_double_on_the_way_down(self, encoder, channels):
        network = self.build(encoder=encoder, width=1.0)
        expected = [min(channel, 64 << i) for i, channel in enumerate(channels)]
        stages = [[m.out_channels for m in stage if isinstance(m, nn.Conv2d)] for stage in network.encoder.stages]
        assert [stage[-1] for stage in stages] == expected
        assert [len(stage) for stage in stages] == ([2] * 5 if encoder == "plain" else [2, 2, 3, 3, 3])

    @pytest.mark.parametrize("encoder", ["plain", "vgg16"])
    def test_without_padding_it_sees_what_it_saw_with_it(self, encoder):
        """Far from the borders, where both pool the same pixels together."""
        options = {"encoder": encoder, "width": 0.0625}
        same, valid = self.build(2, **options).eval(), self.build(2, **options, padding="valid").eval()
        x = torch.rand(1, 3, 288, 288)
        shift = 14  # the decoder takes 30 px off the deepest map, which so begins 30 px, or 14, before the picture
        with torch.no_grad():
            expected = same(functional.pad(x, (shift, 0, shift, 0)))[..., shift:, shift:]
            middle = (..., slice(136, 152), slice(136, 152))
            torch.testing.assert_close(valid(x)[middle], expected[middle], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("encoder", "padding"), [("plain", "valid"), ("vgg16", "same"), ("vgg16", "valid")])
    @pytest.mark.parametrize("size", [(1, 1), (97, 131)])
    def test_every_kind_covers_the_picture(self, encoder, padding, size):
        network = self.build(encoder=encoder, padding=padding, width=0.0625).eval()
        with torch.no_grad():
            assert network(torch.rand(1, 3, *size)).shape == (1, 21, *size)

    @pytest.mark.parametrize(("size_px", "before_px", "after_px"), [(1, 2, 3), (2, 5, 4), (7, 3, 6), (7, 20, 15)])
    def test_borders_are_mirrored(self, size_px, before_px, after_px):
        expected = np.pad(np.arange(size_px), (before_px, after_px), mode="reflect")
        assert mirror(size_px, before_px, after_px, torch.device("cpu")).tolist() == expected.tolist()


@pytest.mark.slow
class TestUNetValid(Network):
    name = "unet"
    options = {"width": 0.125, "padding": "valid"}


@pytest.mark.slow
class TestUNetOnVGG16(Network):
    name = "unet"
    options = {"width": 0.125, "encoder": "vgg16"}


class TestTorchvision(Network):
    name = "torchvision:lraspp_mobilenet_v3_large"


@dataclass(frozen=True)
class Convolution:
    """One call of a convolution behind the encoder, for an input of 128 x 192."""

    levels: tuple[str, ...]  # of C1..C5, those that its output depends on
    kernel: int
    dilation: int
    size: tuple[int, int]
    groups: int
    channels: int  # out


def behind_the_encoder(network: nn.Module) -> list[Convolution]:
    """Every convolution behind `network.encoder` in the order of their calls, and the levels a gradient reaches."""
    levels: list[torch.Tensor] = []
    calls: list[tuple[nn.Conv2d, torch.Tensor]] = []

    def cut(module: nn.Module, inputs: Any, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        levels.extend(output.detach().requires_grad_() for output in outputs)
        return list(levels)

    inner = set(network.encoder.modules())
    network.encoder.register_forward_hook(cut)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module not in inner:
            module.register_forward_hook(lambda module, inputs, output: calls.append((module, output)))
    network.eval()(torch.rand(1, 3, 128, 192))
    found = []
    for module, output in calls:
        gradients = torch.autograd.grad(output.sum(), levels, retain_graph=True, allow_unused=True)
        reached = tuple(f"C{i}" for i, g in enumerate(gradients, start=1) if g is not None and g.any())
        size = (output.shape[-2], output.shape[-1])
        kernel, dilation = module.kernel_size[0], module.dilation[0]
        found.append(Convolution(reached, kernel, dilation, size, module.groups, module.out_channels))
    return found


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size.model}{size.options or ''}")
def test_size_is_the_papers(size):
    assert count_parameters(size.model, **size.options) == pytest.approx(size.parameters, rel=size.tolerance)


def count_parameters(model: str, num_classes: int = 21, **options: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(model, num_classes=num_classes, **options).parameters())


def test_every_network_of_the_table_is_tested():
    assert set(MODELS) <= set(TESTED)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "lightwieght"}, "no model 'lightwieght'.*lightweight.*torchvision:NAME.*did you mean 'lightweight'"),
        ({"model": "torchvision:lraspp_mobilenet_v3"}, "did you mean 'lraspp_mobilenet_v3_large'"),
        ({"model": "smpp:Unet"}, "no model 'smpp:Unet'.*did you mean 'smp'"),
        ({"model": "lightweight", "output_strid": 8}, "no option 'output_strid'.*did you mean 'output_stride'"),
        ({"model": "lightweight", "crf": "no"}, "option crf of model 'lightweight' is out of range; found no"),
        ({"model": "lightweight", "cfr": True}, "no option 'cfr'.*did you mean 'crf'"),
        ({"model": "lightweight", "output_stride": 4}, "output_stride out of range; found 4; expected 8, 16 or 32"),
        ({"model": "lightweight", "rates": ()}, "rates out of range"),
        ({"model": "multilevel_deeplab", "rates": (6, 12)}, "rates out of range.*expected three integers from 1 up"),
        ({"model": "multilevel_deeplab", "channels": 0}, "channels out of range; found 0; expected 1 or more"),
        ({"model": "multilevel_deeplab", "global_pooling": "deeper"}, "no global_pooling 'deeper'.*mean 'deep'"),
        ({"model": "multilevel_deeplab", "fusion": "sum"}, "no fusion 'sum'; expected add, concat, gated"),
        ({"model": "multilevel_deeplab", "backbone": "resnet11"}, "no backbone 'resnet11'.*did you mean 'resnet1"),
        ({"model": "deeplabv3plus", "rates": (0, 6)}, "rates out of range.*expected one or more integers from 1 up"),
        ({"model": "pspnet", "bins": ()}, "bins out of range"),
        ({"model": "bisenet", "backbone": "resnet19"}, "no backbone 'resnet19'.*did you mean 'resnet1"),
        ({"model": "espnetv2", "width": 0.75}, "width out of range; found 0.75; expected 0.5, 1.0, 1.25, 1.5, 2.0"),
        ({"model": "espnetv2", "backbone_weights": "imagenet"}, "torchvision has no ImageNet weights of ESPNetv2"),
        ({"model": "lightweight", "dropout": 1.0}, "dropout out of range"),
        ({"model": "fcn8s", "width": 0}, "width out of range; found 0; expected above 0, at most 4"),
        ({"model": "fcn8s", "dropout": 1}, "dropout out of range"),
        ({"model": "fpn_fcn", "backbone": "vgg11"}, "no backbone 'vgg11' for fpn_fcn; expected vgg19, vgg16"),
        ({"model": "attention_fcn", "width": "slimmer"}, 'width out of range; found slimmer.*or "slim"'),
        (
            {"model": "unet", "encoder": "vgg61"},
            "no encoder 'vgg61' for unet; expected plain, vgg16; did you",
        ),
        ({"model": "unet", "padding": 0}, "no padding 0 for unet; expected same, valid"),
        ({"model": "unet", "backbone_weights": "vgg16.pth"}, "plain encoder of unet has no weights.*encoder to vgg16"),
        ({"model": "attention_fcn", "reduction": 0}, "reduction out of range"),
        ({"model": "lightweight", "num_classes": 0}, "at least one class"),
        ({"model": "lightweight", "backbone_weights": "nowhere.pth"}, "weights file does not exist: nowhere.pth"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        build_model(**{"num_classes": 2, **arguments})


def test_weights_of_another_network_are_named(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"lacks \d+ of 314 keys.*features.0.0.weight"):
        build_model("lightweight", num_classes=2, backbone_weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_weights_is_named(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"no weights at all")
    with pytest.raises(InputError, match="cannot read weights file"):
        build_model("lightweight", num_classes=2, backbone_weights=str(path))


def mean_iou(logits: torch.Tensor, target: torch.Tensor) -> float:
    predicted = logits.detach().argmax(1)
    ious = [
        ((predicted == k) & (target == k)).sum() / ((predicted == k) | (target == k)).sum() for k in target.unique()
    ]
    return float(torch.stack(ious).mean())
