"""A classifier behind the same interface as a model that writes: its answer is one label."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

from llms_from_scratch.serving.engine import Busy, End, Failed, Job, Token
from llms_from_scratch.serving.speaking import Speaker


class LabelEngine:
    """Answers each job with a label, "spam" say; one at a time, ``queue_size`` more may wait."""

    def __init__(self, speaker: Speaker, queue_size: int = 64):
        self.speaker, self.queue_size = speaker, queue_size
        self.pending = 0

    def start(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="classifier")

    def ask_to_stop(self) -> None:
        """Nothing to do: an answer takes no time."""

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, *jobs: Job) -> None:
        """Queue jobs, all or none; raises ``Busy`` if too many wait."""
        if self.pending + len(jobs) > self.queue_size:
            raise Busy(f"{self.pending} requests are waiting already")
        self.pending += len(jobs)
        for job in jobs:
            self._pool.submit(self._answer, job)

    def cancel(self, *jobs: Job) -> None:
        for job in jobs:
            job.cancelled = True

    def load(self) -> dict[str, int]:
        return {"running": min(self.pending, 1), "waiting": max(0, self.pending - 1), "slots": 1}

    def _answer(self, job: Job) -> None:
        started = time.perf_counter()
        try:
            if not job.cancelled:
                text = self.speaker.tokenizer.decode(job.prompt)
                label, probability = self.speaker.classify(text)
                token_id = self.speaker.tokenizer.encode_ordinary(label)[0]
                job.on_event(Token(token_id, label, math.log(max(probability, 1e-30))))
                seconds = {"waiting": 0.0, "prompt": time.perf_counter() - started, "answer": 0.0}
                job.on_event(End("stop", "", 1, seconds))
        except ValueError as error:
            job.on_event(Failed(str(error)))
        finally:
            self.pending -= 1
