"""The corridor of a stream of sound: chunks through its hearing to its reporter. Nothing here loads OpenCV."""

from __future__ import annotations

from agent.comms.reporter import Reporter
from agent.compute.hearing import Hearing
from agent.corridor import Corridor, Source
from agent.messages import AudioChunk


class SoundPipeline(Corridor[AudioChunk]):
    """Sound of one stream."""

    def __init__(self, source: Source[AudioChunk], hearing: Hearing, reporter: Reporter) -> None:
        super().__init__(source, hearing, reporter)
        self._hearing = hearing

    def _handle(self, chunk: AudioChunk) -> None:
        hearing = self._hearing
        self._now = chunk.captured_ns, chunk.captured_at
        seen = hearing.listen(chunk)
        self._reporter.seen(chunk.first, chunk.captured_at, seen, *hearing.answered_by)
        if seen.events:
            self._count()
        if self.shadow is not None:
            self.shadow.heard(chunk, seen.detections, seen.stages.infer // max(1, hearing.inferences))
        self._note(seen, hearing.inferences)
