"""What each training worker runs: steps, the averaged network, validation, checkpoints.

Everything that a step does follows from its number: the samples (`samples.SamplePlan`), the learning rate, the seed of
the dropout. A run resumed from a checkpoint therefore goes on as the undisturbed one would have. What is validated and
saved is the exponential moving average of the weights, at a small batch clearly better than the weights themselves.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import nn

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.models import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.runtime.progress import duration
from pipeline.training.ema import EMA
from pipeline.training.event_files import EventFiles
from pipeline.training.losses import LOSSES, with_auxiliary
from pipeline.training.optimizer import autocast_dtype, parameter_groups
from pipeline.training.samples.augmentation import normalize
from pipeline.training.schedules import factor
from pipeline.training.task import POSITION, State, Task
from pipeline.training.validation import confusion, summed

_STATE = "state.pt"
_NEWS_EVERY_S = 2.0
_NAMED_FAILURES = 20
_JUDGED_AFTER_SAMPLES = 200
_AGREE_EVERY_STEPS = 10  # workers ask the first one whether to save or stop


def train_loop(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker; `config["task"]` is the `Task`."""
    _Loop(config["task"]).run()


class _Loop:
    def __init__(self, task: Task) -> None:
        self.task, self.plan = task, task.plan
        self.rank = ray.train.get_context().get_world_rank()
        self.device = ray.train.torch.get_device()
        torch.set_num_threads(task.threads)
        torch.manual_seed(self.plan.seed)
        self.autocast = autocast_dtype(task.precision, self.device.type)
        checkpoint = ray.train.get_checkpoint()
        spec = task.spec
        if checkpoint is None:
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
        if checkpoint is not None:
            self._load(checkpoint)
        self.wrapped = ray.train.torch.prepare_model(self.model, move_to_device=False)
        self.notes: list[str] = []
        self.stop_asked = False
        self.failed_here = 0  # by this worker since it started
        self.losses = torch.zeros((), device=self.device)
        self.losses_of_steps = 0
        self.news_s = self.saved_s = self.started_s = time.monotonic()
        self.events = EventFiles(task.output, self.state.step) if self.rank == 0 else None

    # ---- steps -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        total = self.plan.total_steps
        self.first_step = self.state.step
        if self.first_step:
            self.notes.append(f"resuming at step {self.first_step} of {total}")
        validation_steps = self._validation_steps()
        stream = ray.train.get_dataset_shard("train").iter_batches(
            batch_size=self.plan.worker_batch, batch_format="numpy", prefetch_batches=2, drop_last=True
        )
        skip: int | None = None
        for batch in stream:
            if self.state.step >= total:
                break
            if skip is None:
                # a stream made before the latest checkpoint begins with steps that are done
                first = self._of_first_worker(int(batch["step"].min()))
                if first > self.state.step:
                    self._begin_stream_again(first)
                skip = self.state.step - first
            if skip:
                skip -= 1
                continue
            self._step(batch)
            validate = self.state.step in validation_steps
            self._tell()
            save, stop = self._decide()
            if validate:
                self._validate()
            if validate or save or stop:
                self._checkpoint()
            if stop:
                break
        if self.state.step < total and not self.stop_asked:
            raise PipelineError(f"the sample stream ended at step {self.state.step} of {total}")
        self._tell(force=True)
        if self.events:
            self.events.close()

    def _begin_stream_again(self, first: int) -> None:
        """The last run died between noting a checkpoint and Ray's keeping it, so the stream begins too late.

        Raises RuntimeError, upon which Ray Train starts the workers, and the stream, again.
        """
        if self.rank == 0:
            storage.write_json(storage.join(self.task.output, POSITION), {"step": self.state.step})
        raise RuntimeError(f"samples from step {first} on, but the checkpoint is of step {self.state.step}")

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
        inputs = normalize(pixels, spec.mean, spec.std, spec.scale)
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

    def _of_first_worker(self, value: int) -> int:
        if self.plan.num_workers == 1:
            return value
        shared = torch.tensor([value], dtype=torch.int64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return int(shared)

    def _decide(self) -> tuple[bool, bool]:
        """(save a checkpoint, stop): the first worker's word, since saving is a barrier."""
        if self.plan.num_workers > 1 and self.state.step % _AGREE_EVERY_STEPS:
            return False, False
        due = time.monotonic() - self.saved_s >= 60 * self.task.checkpoint_minutes
        word = self._of_first_worker(2 * self.stop_asked + due)
        self.stop_asked = word >= 2
        return bool(word & 1), self.stop_asked

    # ---- validation and checkpoints ----------------------------------------------------------------------------------

    def _validation_steps(self) -> set[int]:
        epochs = range(self.task.validate_every - 1, self.plan.epoch_of(self.plan.total_steps) + 1)
        return {self.plan.epoch_end(epoch) for epoch in epochs[:: self.task.validate_every]} | {self.plan.total_steps}

    def _validate(self) -> None:
        started_s = time.monotonic()
        shard = ray.train.get_dataset_shard("validation")
        mine, unread = confusion(self.ema.model, self.task.spec, shard, self.device)
        matrix, (unread, failed) = summed(mine, [unread, self.state.failed_samples], self.device)
        k = matrix.num_classes
        metrics = matrix.metrics(self.task.spec.label_set.names)
        miou = metrics["miou"] or 0.0
        epoch = self.state.step * self.plan.batch_size / self.plan.num_rows
        record = {"step": self.state.step, "epoch": epoch, "miou": miou, "pixel_accuracy": metrics["pixel_accuracy"]}
        record["iou"] = {name: values["iou"] for name, values in metrics["per_class"].items()}
        self.state.history.append(record)
        best = miou > self.state.best
        self.state.best = max(miou, self.state.best)
        if self.rank == 0:
            spec = self._spec(metrics)
            if best:
                save_checkpoint(storage.join(self.task.output, "best"), self.ema.model, spec)
            save_checkpoint(storage.join(self.task.output, "last"), self.ema.model, spec)
            storage.write_json(storage.join(self.task.output, "history.json"), self.state.history)
            assert self.events is not None
            self.events.validation(self.state.step, record)
            self.notes.append(
                f"validation after epoch {epoch:.1f}: mIoU {miou:.4f} "
                f"over {metrics['classes_counted']} of {k} classes, "
                f"pixel accuracy {metrics['pixel_accuracy'] or 0:.4f} ({time.monotonic() - started_s:.0f} s)"
                + (", the best so far" if best else f"; best {self.state.best:.4f}")
                + (f"; {unread} of its pictures could not be read" if unread else "")
                + (f"; {failed} training samples were replaced" if failed else "")
            )
            self._tell(force=True)

    def _checkpoint(self) -> None:
        """Into Ray Train's storage, from which a resumed run goes on; a barrier for all workers."""
        metrics = {"step": self.state.step, "best_miou": self.state.best}
        if self.rank:
            ray.train.report(metrics)
        else:
            with tempfile.TemporaryDirectory() as folder:
                state = {
                    **vars(self.state),
                    "model": self.model.state_dict(),
                    "average": self.ema.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                }
                torch.save(state, os.path.join(folder, _STATE))
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
            storage.write_json(storage.join(self.task.output, POSITION), {"step": self.state.step})
            if not storage.exists(storage.join(self.task.output, "last", "model.json")):
                save_checkpoint(storage.join(self.task.output, "last"), self.ema.model, self._spec({}))
            assert self.events is not None
            self.events.upload()
        self.saved_s = time.monotonic()

    def _load(self, checkpoint: ray.train.Checkpoint) -> None:
        with checkpoint.as_directory() as folder:
            state = torch.load(os.path.join(folder, _STATE), map_location=self.device, weights_only=True)
        self.model.load_state_dict(state.pop("model"))
        self.ema.model.load_state_dict(state.pop("average"))
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.state = State(**state)
        if self.rank:
            self.state.failed_samples = 0  # the count is the first worker's own

    def _spec(self, metrics: dict[str, Any]) -> ModelSpec:
        return ModelSpec(**{**vars(self.task.spec), "metrics": {"step": self.state.step, "validation": metrics}})

    # ---- news --------------------------------------------------------------------------------------------------------

    def _tell(self, *, force: bool = False) -> None:
        """Now and then: where the run stands, to the driver and to TensorBoard; learns whether to stop."""
        now_s = time.monotonic()
        if not (force or now_s - self.news_s >= _NEWS_EVERY_S):
            return
        if self.rank:
            self.news_s = now_s
            if self.notes:
                self.task.monitor.add.remote(self.notes)
                self.notes = []
            return
        if self.losses_of_steps:
            self.loss = float(self.losses) / self.losses_of_steps
            if not math.isfinite(self.loss):
                raise PipelineError(
                    f"the loss is not finite at step {self.state.step}; lower --learning-rate, or train in float32 "
                    "(--precision float32)"
                )
            assert self.events is not None
            self.events.step(self.state.step, self.loss, self.optimizer.param_groups[-1]["lr"])
            self.losses.zero_()
            self.losses_of_steps = 0
        self.news_s = now_s
        done = self.state.step - self.first_step
        rate = done * self.plan.batch_size / max(1e-9, now_s - self.started_s)
        left_s = (self.plan.total_steps - self.state.step) * self.plan.batch_size / max(1e-9, rate)
        epochs = math.ceil(self.plan.total_steps * self.plan.batch_size / self.plan.num_rows)
        text = (
            f"epoch {min(epochs, self.plan.epoch_of(self.state.step) + 1)}/{epochs}, "
            f"step {self.state.step}/{self.plan.total_steps}, loss {getattr(self, 'loss', math.nan):.3f}, "
            f"{rate:.1f} pictures/s, {duration(left_s)} left"
            + (f", best mIoU {self.state.best:.4f}" if self.state.best >= 0 else "")
        )
        notes, self.notes = self.notes, []
        news = {"text": text, "step": self.state.step, "best": self.state.best, "stopped": self.stop_asked}
        self.stop_asked = bool(ray.get(self.task.monitor.post.remote(news, notes))) or self.stop_asked

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
