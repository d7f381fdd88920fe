"""The experiment on kernels, from start to figure."""

import csv
import shutil

import pytest

from experiments.common import command_line


def test_kernels_from_start_to_redrawn_figure(tmp_path, capsys):
    arguments = ["kernels", "--orders", "2", "10", "--out", str(tmp_path)]
    assert command_line.main(arguments) == 0
    table = capsys.readouterr().out.partition("\nWidth of each trace")[2]
    folder = tmp_path / "kernels"
    picture = (folder / "kernels.png").read_bytes()
    with (folder / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["trace"], row["order"]) == ("CET", "10")]
    weights = {float(row["time_s"]): float(row["value"]) for row in rows if row["metric"] == "weight_per_s"}
    assert max(weights, key=weights.get) == 4.0
    sd = [float(row["value"]) for row in rows if row["metric"] == "sd_s"]
    assert sd == pytest.approx([10**0.5 * (4 - 0.02) / 9])  # √n / α, α = (n - 1)/(T - dt/2)
    (folder / "kernels.png").unlink()
    shutil.rmtree(folder / "runs")
    assert command_line.main([*arguments, "--plot-only"]) == 0
    assert (folder / "kernels.png").read_bytes() == picture
    assert capsys.readouterr().out.partition("\nWidth of each trace")[2] == table != ""
