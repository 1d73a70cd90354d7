# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The commands that convert and publish checkpoints."""


def test_convert_names_the_missing_file(run, tmp_path):
    flags = ("--token-dictionary", "--gene-medians", "--gene-names", "--text-vocab")
    missing = [part for flag in flags for part in (flag, tmp_path / "absent")]
    result = run("convert", tmp_path / "parts", *missing, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "cell_proj.bin" in result.stderr
    assert not (tmp_path / "out").exists()
