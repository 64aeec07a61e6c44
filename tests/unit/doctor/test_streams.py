from __future__ import annotations

from pathlib import Path

from agent.doctor.streams import findings


def test_every_error_of_a_configuration_is_a_problem_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('[streams.front]\nsource = "tset:"\nmodel = "nanodett"\n')
    found = list(findings(path, asked=True))
    assert [one.state for one in found] == ["problem", "problem"]
    assert found[0].value.startswith(f"{path}:2: ")
    assert found[1].advice.startswith(f"correct {path}:3; ")


def test_a_configuration_that_is_well(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('[streams.front]\nsource = "test:"\nmodel = "nanodet"\n')
    (found,) = findings(path, asked=True)
    assert (found.state, found.value) == ("ok", f"nothing is wrong with {path}")


def test_the_usual_file_may_be_missing_and_a_named_one_may_not(tmp_path: Path) -> None:
    (found,) = findings(tmp_path / "no.toml", asked=False)
    assert found.state == "ok"
    (found,) = findings(tmp_path / "no.toml", asked=True)
    assert found.state == "problem"
