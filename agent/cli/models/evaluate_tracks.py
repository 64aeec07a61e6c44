"""`vedette models evaluate` for clips: a detector with the tracker of the daemon, or the tracker alone."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from agent.cli.models.evaluate_options import (
    EvaluateOptions,
    check_targets,
    given_slices,
    print_tables,
    write_outputs,
)
from agent.cli.optimise.progress import show_progress
from agent.cli.output import print_json
from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.models.library import open_model_without_root
from agent.optimise.evaluation.kept import KeptResults, keep_results
from agent.optimise.evaluation.mot import PUBLISHED, MotSequence, read_clips
from agent.optimise.evaluation.track_report import track_lines, track_tables, tracks_to_html
from agent.optimise.evaluation.tracking import (
    TrackEvaluation,
    TrackRequest,
    describe_clips,
    evaluate_tracking,
)


def evaluate_tracks_and_print(name: str, data: Path, options: EvaluateOptions) -> bool:
    """Evaluate tracking, print what was found, and write what is asked for.

    Args:
        name: of the detector, or its path; `det.txt`: the published detections are tracked.
        data: path of the clips.
        options: see `EvaluateOptions`.

    Returns:
        True: no target can be missed.

    Raises:
        ModelError: a model or the clips cannot be used, or a file is there already.
    """
    options.refuse("is for models of words", "background", "target_false_alarms", "curve")
    options.refuse("is not for clips", "target_recall", "limit", "picture")
    check_targets(options, [data, Path(name)])
    if PUBLISHED in (name, options.against) and name != options.against and options.positive:
        raise ModelError(f"--positive: {PUBLISHED} has no classes")
    sequences = read_clips(data)
    slices = given_slices(options.slices, [one.name for one in sequences])
    request = TrackRequest(options.variant, options.positive, options.every, slices)
    with keep_results(options.results_path, fresh=options.fresh) as kept:
        try:
            found = _evaluated(name, data, sequences, request, kept)
            if options.against:
                plain_request = replace(request, variant="", slices={})
                other = _evaluated(options.against, data, sequences, plain_request, kept)
                found = replace(found, against=(other.model, other.overall.mota))
        finally:
            show_progress("")
    lines = track_lines(found, kept.reused)
    print_json(found, indent=2) if options.as_json else print_tables(lines, track_tables(found))
    report = options.report
    write_outputs([(report, lambda: tracks_to_html(found, sequences, lines).encode("utf-8", "replace"))])
    return True


def _evaluated(
    name: str, data: Path, sequences: tuple[MotSequence, ...], request: TrackRequest, kept: KeptResults
) -> TrackEvaluation:
    model = None if name == PUBLISHED else _opened(name, request.variant)
    total = sum(len(range(0, one.frames, request.every)) for one in sequences)

    def show(done: int) -> None:
        taken = f", {kept.reused} taken over" if kept.reused else ""
        show_progress(f"{done} of {total} pictures tracked{taken}")

    told = describe_clips(str(data), sequences, request.every)
    return evaluate_tracking(model, sequences, told, request, kept, show)


def _opened(name: str, variant: str) -> Model:
    model = open_model_without_root(name, variant)
    if model.manifest.audio is not None:
        raise ModelError(f"{name}: takes sound, and these are clips of pictures")
    return model
