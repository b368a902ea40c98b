"""What each training worker does: steps, the averaged network, validation, checkpoints.

Everything that a step does follows from its number: the samples (`samples.plan`), the learning rate, the seed of the
dropout. A run resumed from a checkpoint therefore goes on as the undisturbed one would have. What is validated and
saved is the exponential moving average of the weights, at a small batch clearly better than the weights themselves.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.models import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.normalization import Normalization
from pipeline.models.spec import ModelSpec
from pipeline.runtime.progress import RecentRate, speed_text
from pipeline.training.event_files import EventFiles
from pipeline.training.optimization.ema import EMA
from pipeline.training.optimization.losses import LOSSES, with_auxiliary
from pipeline.training.optimization.parameter_groups import autocast_dtype, parameter_groups
from pipeline.training.optimization.schedules import factor
from pipeline.training.state import State, load_state, save_state, unpack_state
from pipeline.training.task import Task
from pipeline.training.validation import confusion, summed
from pipeline.training.worker import Worker

_REPORT_EVERY_S = 2.0
_NAMED_FAILURES = 20
_JUDGED_AFTER_SAMPLES = 200
_AGREE_EVERY_STEPS = 10  # workers ask the first one whether to save or stop


def train_loop(task: Task, worker: Worker) -> None:
    """Train from the saved state to the last step. Raises PipelineError where it makes no sense to go on."""
    _Loop(task, worker).run()


class _Loop:
    def __init__(self, task: Task, worker: Worker) -> None:
        self.task, self.plan, self.worker = task, task.plan, worker
        self.rank, self.device = worker.rank, worker.device
        torch.set_num_threads(task.threads)
        torch.manual_seed(self.plan.seed)
        self.autocast = autocast_dtype(task.precision, self.device.type)
        saved = load_state(task.output, self.device)
        if saved is None and (older := worker.older_state()) is not None:
            saved = unpack_state(older, self.device)
        spec = task.spec
        if saved is None:
            classes, bands = spec.label_set.num_classes, spec.bands
            model = build_model(task.model, num_classes=classes, in_channels=bands, **task.options)
        else:
            model = spec.build()
        if self.plan.num_workers > 1 and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(self.device).to(memory_format=getattr(model, "memory_format", torch.channels_last))
        self.ema = EMA(self.model, task.ema_decay)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, task.learning_rate, task.backbone_rate, task.weight_decay), fused=True
        )
        self.class_weights = torch.tensor(task.class_weights, dtype=torch.float32, device=self.device)
        self.state = State()
        if saved is not None:
            self._restore(*saved)
        self.wrapped = worker.wrap(self.model)
        self.normalize = Normalization(spec, self.device)
        self.notes: list[str] = []
        self.stop_asked = False
        self.failed_here = 0  # by this worker since it started
        self.losses = torch.zeros((), device=self.device)
        self.losses_of_steps = 0
        self.loss = math.nan
        self.reported_s = self.saved_s = time.monotonic()
        self.rate = RecentRate(self.state.step * self.plan.batch_size)
        self.waited_s, self.waited_since_s = 0.0, time.monotonic()  # for samples, since the last validation
        self.events = EventFiles(task.output, self.state.step) if self.rank == 0 else None

    # ---- steps -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        total = self.plan.total_steps
        self.first_step = self.state.step
        if self.first_step:
            self.notes.append(f"resuming at step {self.first_step} of {total}")
        validation_steps = self._validation_steps()
        stream = self.worker.samples(self.first_step) if self.first_step < total else iter(())
        while self.state.step < total:
            begin_s = time.monotonic()
            batch = next(stream, None)
            if batch is None:
                raise PipelineError(f"the sample stream ended at step {self.state.step} of {total}")
            if self.state.step > self.first_step:  # the first one also waits for the readers to start
                self.waited_s += time.monotonic() - begin_s
            else:
                self.waited_since_s = time.monotonic()
            self._step(batch)
            validate = self.state.step in validation_steps
            self._report(force=self.state.step == self.first_step + 1)  # whoever waits sees that it has begun
            save, stop = self._decide()
            if validate:
                self._validate()
            if validate or save or stop:
                self._checkpoint()
            if stop:
                break
        self._report(force=True)
        if self.events:
            self.events.close()

    def _step(self, batch: dict[str, np.ndarray]) -> None:
        task, step = self.task, self.state.step
        rate = factor(task.schedule, step, self.plan.total_steps, task.power, task.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["base_rate"]
        # dropout depends on the step alone, so a resumed run draws the same
        torch.manual_seed((self.plan.seed * 1_000_003 + step) * 4096 + self.rank)
        pixels = torch.tensor(batch["pixels"], device=self.device)
        truth = torch.tensor(batch["truth"].astype(np.int64, copy=False), device=self.device)
        spec = task.spec
        self.wrapped.train()
        if spec.channel_order == "bgr":
            pixels = pixels.flip(-1)
        inputs = self.normalize(pixels)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            logits = self.wrapped(inputs)
        loss = with_auxiliary(
            LOSSES[task.loss],
            logits,
            truth,
            self.class_weights,
            spec.label_set.ignore_value,
            weight=task.auxiliary_weight,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.ema.update(step)
        self.losses += loss.detach()
        self.losses_of_steps += 1
        self.state.step += 1
        for failure in batch["failure"]:
            if failure:
                self._count_failure(str(failure))

    # ---- what workers must agree on ----------------------------------------------------------------------------------

    def _decide(self) -> tuple[bool, bool]:
        """(save a checkpoint, stop): the first worker decides for all."""
        if self.plan.num_workers > 1 and self.state.step % _AGREE_EVERY_STEPS:
            return False, False
        due = time.monotonic() - self.saved_s >= 60 * self.task.checkpoint_minutes
        word = self.worker.from_first(2 * self.stop_asked + due)
        self.stop_asked = word >= 2
        return bool(word & 1), self.stop_asked

    # ---- validation and checkpoints ----------------------------------------------------------------------------------

    def _validation_steps(self) -> set[int]:
        epochs = range(self.task.validate_every - 1, self.plan.epoch_of(self.plan.total_steps) + 1)
        return {self.plan.epoch_end(epoch) for epoch in epochs[:: self.task.validate_every]} | {self.plan.total_steps}

    def _validate(self) -> None:
        started_s = time.monotonic()
        wait_share = self._wait_share()
        mine, unread = confusion(self.ema.model, self.task.spec, self.worker.validation_pictures(), self.device)
        matrix, (unread, failed) = summed(mine, [unread, self.state.failed_samples], self.device)
        metrics = matrix.metrics(self.task.spec.label_set.names)
        miou = metrics["miou"]
        epoch = self.state.step * self.plan.batch_size / self.plan.num_rows
        record = {"step": self.state.step, "epoch": epoch, "miou": miou, "pixel_accuracy": metrics["pixel_accuracy"]}
        record["iou"] = {name: values["iou"] for name, values in metrics["per_class"].items()}
        record["wait_share"] = round(wait_share, 4)
        self.state.history.append(record)
        best = miou is not None and (self.state.best is None or miou > self.state.best)
        if best:
            self.state.best = miou
        if self.rank == 0:
            spec = self._spec(metrics)
            if best:
                save_checkpoint(storage.join(self.task.output, "best"), self.ema.model, spec)
            save_checkpoint(storage.join(self.task.output, "last"), self.ema.model, spec)
            storage.write_json(storage.join(self.task.output, "history.json"), self.state.history)
            assert self.events is not None
            self.events.validation(self.state.step, record)
            self.notes.append(
                f"validation after epoch {epoch:.1f}: mIoU {_figure(miou)} "
                f"over {metrics['classes_counted']} of {matrix.num_classes} classes, "
                f"pixel accuracy {_figure(metrics['pixel_accuracy'])} ({time.monotonic() - started_s:.0f} s)"
                + (", the best so far" if best else f"; best {_figure(self.state.best)}")
                + f"; waited for samples {100 * wait_share:.1f} % of the time"
                + (f"; {unread} of its pictures could not be read" if unread else "")
                + (f"; {failed} training samples were replaced" if failed else "")
            )
        self._report(force=True)
        # what validation took says nothing about the steps to come
        self.rate = RecentRate(self.state.step * self.plan.batch_size)
        self.waited_s, self.waited_since_s = 0.0, time.monotonic()

    def _checkpoint(self) -> None:
        """Save the state that a resumed run goes on from; the first worker's, which is everybody's."""
        if self.rank == 0:
            tensors = {
                "model": self.model.state_dict(),
                "average": self.ema.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            save_state(self.task.output, self.state, tensors)
            if not storage.exists(storage.join(self.task.output, "last", "model.json")):
                save_checkpoint(storage.join(self.task.output, "last"), self.ema.model, self._spec({}))
            assert self.events is not None
            self.events.upload()
        self.saved_s = time.monotonic()

    def _restore(self, state: State, tensors: dict[str, Any]) -> None:
        self.model.load_state_dict(tensors["model"])
        self.ema.model.load_state_dict(tensors["average"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.state = state
        if self.rank:
            self.state.failed_samples = 0  # the count is the first worker's own

    def _spec(self, metrics: dict[str, Any]) -> ModelSpec:
        return ModelSpec(**{**vars(self.task.spec), "metrics": {"step": self.state.step, "validation": metrics}})

    # ---- reports -----------------------------------------------------------------------------------------------------

    def _report(self, *, force: bool = False) -> None:
        """Every two seconds: where the run stands, to the driver and to TensorBoard. Learns whether to stop."""
        now_s = time.monotonic()
        if not (force or now_s - self.reported_s >= _REPORT_EVERY_S):
            return
        self.reported_s = now_s
        notes, self.notes = self.notes, []
        if self.losses_of_steps and self.rank == 0:
            self.loss = float(self.losses) / self.losses_of_steps
            if not math.isfinite(self.loss):
                raise PipelineError(
                    f"the loss is not finite at step {self.state.step}; lower --learning-rate, or train in float32 "
                    "(--precision float32)"
                )
            assert self.events is not None
            self.events.step(self.state.step, self.loss, self.optimizer.param_groups[-1]["lr"], self._wait_share())
            self.losses.zero_()
            self.losses_of_steps = 0
        status = {
            "text": self._text(),
            "step": self.state.step,
            "best": self.state.best,
            "stopped": self.stop_asked,
        }
        self.stop_asked = self.worker.report(status, notes) or self.stop_asked

    def _wait_share(self) -> float:
        """The share of time that this worker waited for samples, since the last validation."""
        return self.waited_s / max(1e-9, time.monotonic() - self.waited_since_s)

    def _text(self) -> str:
        plan, step = self.plan, self.state.step
        self.rate.update(step * plan.batch_size)
        speed = speed_text(self.rate, plan.total_steps * plan.batch_size, " pictures")
        epochs = math.ceil(plan.total_steps * plan.batch_size / plan.num_rows)
        return (
            f"epoch {min(epochs, plan.epoch_of(step) + 1)}/{epochs}, step {step}/{plan.total_steps}, "
            f"loss {_figure(self.loss, 3)}"
            + (f", {speed}" if step < plan.total_steps else "")
            + (f", best mIoU {self.state.best:.4f}" if self.state.best is not None else "")
        )

    def _count_failure(self, failure: str) -> None:
        """A sample that could not be read. Raises PipelineError where it is most of them."""
        self.state.failed_samples += 1
        self.failed_here += 1
        if self.failed_here <= _NAMED_FAILURES:
            more = " (further ones are only counted)" if self.failed_here == _NAMED_FAILURES else ""
            self.notes.append(f"cannot train on {failure}; another picture takes its place{more}")
        seen = (self.state.step - self.first_step) * self.plan.worker_batch
        if seen >= _JUDGED_AFTER_SAMPLES and 2 * self.failed_here > seen:
            raise PipelineError(f"{self.failed_here} of {seen} training samples could not be read, such as {failure}")


def _figure(value: float | None, digits: int = 4) -> str:
    return "none" if value is None or math.isnan(value) else f"{value:.{digits}f}"
