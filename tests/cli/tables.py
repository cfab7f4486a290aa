"""`dcm eval table` from outside, on a tiny model and the C reference.

tables.py DCM MAKE_TINY_MODEL GET_MODEL [PATTERN].

The values are those that `eval ppl` and `eval metrics` find for the same files one by one.
"""
import json
import math
import pathlib
from xml.etree import ElementTree

import check
from eval import SVG, rows, scale_of, spoilt_model, text_file

TOKENS = ("-n", "90", "--skip", "10")


def trained(cli, name, *args, groups="4,8"):
    path = cli.folder / name
    cli.ok("train", "-m", cli.tiny, "-f", text_file(cli, "train.txt", 100, 5), "-o", path, "-n", "48", "-L", groups,
           "--steps", "2", "--rate", "0.01", "-q", *args)
    return str(path)


def table(cli, number, merges, *args):
    path = text_file(cli, "table.txt", 60, 3)
    out = cli.ok("eval", "table", number, "-m", cli.tiny, "-f", path, *TOKENS, "--merges", ",".join(merges), "-q",
                 "--format", "json", *args)
    return json.loads(out)


def ppl(cli, merge, group, *args):
    """Means over the tokens of `table`, by `eval ppl`."""
    row, = rows(cli, "ppl", "-f", text_file(cli, "table.txt", 60, 3), *TOKENS, "-L", group, "--merge", merge,
                "--against", "full", *args)
    return row["kl"], row["ppl"]


def close(found, expected):
    assert abs(found - expected) <= 1e-6 * abs(expected), (found, expected)


def test_depths(cli):
    merges = [trained(cli, "g3", "--merge-arch", "gate", "--depth", "3"),
              trained(cli, "d15", "--merge-arch", "direct", "--depth", "15"), trained(cli, "s")]
    found = table(cli, "1", merges, "-L", "4")
    assert found["table"] == 1 and "LongBench" in found["accuracy"] and found["groups"] == [4]
    assert [(r["depth"], r["arch"], r["merge"]) for r in found["rows"]] == [
        (3, "gate", merges[0]), (15, "direct", merges[1]), (None, "score", merges[2])]
    for row, merge in zip(found["rows"], merges):
        kl, perplexity = ppl(cli, merge, "4")
        close(row["kl"], kl)
        close(row["ppl"], perplexity)
        assert row["qasper"] is None and row["multifieldqa_en"] is None and row["2wikimultihopqa"] is None
    assert len({r["kl"] for r in found["rows"]}) == 3
    paper = [[r[f"paper_{n}"] for n in ("qasper", "multifieldqa_en", "2wikimultihopqa")] for r in found["rows"]]
    assert paper == [[38.5, 28.5, 42.0], [48.5, 38.5, 53.0], [None, None, None]]
    full, = rows(cli, "ppl", "-f", text_file(cli, "table.txt", 60, 3), *TOKENS, "--cache", "full")
    close(found["rows"][0]["ppl_full"], full["ppl"])


def test_groups(cli):
    merges = [trained(cli, "s"), trained(cli, "s8", groups="8")]
    found = table(cli, "2", merges, "-L", "4,8,16")["rows"]
    assert [r["train_l"] for r in found] == ["4,8", "8"]
    for row, merge in zip(found, merges):
        for group in ("4", "8", "16"):
            kl, perplexity = ppl(cli, merge, group)
            close(row[f"kl_{group}"], kl)
            close(row[f"ppl_{group}"], perplexity)
            assert row[f"accuracy_{group}"] is None


def test_options(cli):
    """What acts on the scores does so as with `eval ppl`, and the result says it. A group length counts once."""
    merge = trained(cli, "s")
    usual = table(cli, "2", [merge], "-L", "4,4")
    assert usual["groups"] == [4] and usual["log_r"] == 0 and usual["far_limit"] is None
    for options in ["--far-limit", "0"], ["--far-limit", "2"], ["--log-r", "0.5"]:
        found = table(cli, "2", [merge], "-L", "4", *options)
        assert found[options[0][2:].replace("-", "_")] == float(options[1])
        close(found["rows"][0]["kl_4"], ppl(cli, merge, "4", *options)[0])
        assert abs(found["rows"][0]["kl_4"] / usual["rows"][0]["kl_4"] - 1) > 1e-4, options


def test_plot(cli):
    """What is drawn, read back by the ticks of the axes, is what the table says."""
    merges, out = [trained(cli, "s"), trained(cli, "a <&>8", groups="8")], cli.folder / "curves.svg"
    found = table(cli, "2", merges, "-L", "16,4,8", "--plot", out)["rows"]
    drawing = ElementTree.parse(out).getroot()
    assert not list(cli.folder.glob("*.part"))
    axes = {g.get("class"): g for g in drawing.findall(SVG + "g") if g.get("class") in "xy"}
    ticks = [t.text for t in axes["x"].iter(SVG + "text")]
    assert ticks == ["2", "4", "8", "16", "32", "test L"]
    log_l, kl = scale_of(axes["x"], "x", lambda t: math.log2(float(t))), scale_of(axes["y"], "y")
    groups = [g for g in drawing.findall(SVG + "g") if g.get("class") == "series"]
    assert [g.find(SVG + "text").text for g in groups] == ["trained with L = 4,8 (s)", "trained with L = 8 (a <&>8)"]
    for group, row in zip(groups, found):
        points = [tuple(map(float, p.split(","))) for p in group.find(SVG + "polyline").get("points").split()]
        marks = group.findall(SVG + "circle")[1:]
        assert points == [(float(m.get("cx")), float(m.get("cy"))) for m in marks]
        assert [round(log_l(x), 2) for x, _ in points] == [2, 3, 4]
        for (_, y), mark, length in zip(points, marks, (4, 8, 16)):
            assert abs(kl(y) - row[f"kl_{length}"]) < 2e-4 * max(r[f"kl_{n}"] for r in found for n in (4, 8, 16)), row
            assert f"test L = {length}: KL {row[f'kl_{length}']:.5f}," in mark.find(SVG + "title").text
    texts = [text.text for text in drawing.iter(SVG + "text")]
    assert any(text.endswith("table.txt, 80 predictions; ref") for text in texts), texts


def test_methods(cli):
    merges = [trained(cli, "c", "--mode", "chunked"), trained(cli, "s"), trained(cli, "b", "--boundary", "1")]
    found = table(cli, "3", merges, "-L", "4")["rows"]
    assert [(r["method"], r["mode"], r["boundary"]) for r in found] == [
        ("baseline", "chunked", 0), ("TAI", "tai", 0), ("TAI + boundary", "tai", 1)]
    assert [(r["paper_il"], r["paper_sdi"], r["paper_bsd"]) for r in found] == [
        (.13, .10, .065), (.12, .10, .048), (.11, .08, .041)]
    for row, merge in zip(found, merges):
        measured = rows(cli, "metrics", "-f", text_file(cli, "table.txt", 60, 3), "-n", "90", "--skip", "9", "-L", "4",
                        "--merge", merge)[-1]
        assert measured["layer"] == "mean"
        for name in ("il", "sdi", "bsd", "bsd_log"):
            close(row[name], measured[name])
        close(row["kl"], ppl(cli, merge, "4")[0])
    silent = without_notes(merges[2], cli.folder / "silent", b'"boundary":"1"', b'"boundarY":"1"')
    assert table(cli, "3", [*merges[:2], silent], "-L", "4")["rows"][2]["boundary"] is None


def without_notes(path, to, note, other):
    """A copy of a merge file with another note of the same length."""
    data = pathlib.Path(path).read_bytes()
    assert data.count(note) == 1
    to.write_bytes(data.replace(note, other))
    return str(to)


def test_usage(cli):
    merge, chunked, boundary = (trained(cli, "s"), trained(cli, "c", "--mode", "chunked"),
                                trained(cli, "b", "--boundary", "0.5"))
    (cli.folder / "text").write_text("not a merge file, but long enough to be read as one")

    def fails(code, message, *args, number="1", merges=merge):
        cli.fails(code, message, "eval", "table", number, "-m", cli.tiny, "-f", cli.text, "--merges", merges, *args)

    cli.fails(2, "which table", "eval", "table", "-m", cli.tiny, "-f", cli.text, "--merges", merge)
    cli.fails(2, "4", "eval", "table", "4", "-m", cli.tiny, "-f", cli.text, "--merges", merge)
    cli.fails(2, "merges", "eval", "table", "1", "-m", cli.tiny, "-f", cli.text)
    fails(2, "one -L", "-L", "4,8")
    fails(2, "a power of two in 2 .. 4096", "-L", "12")
    fails(2, "too few for -L 512", "-L", "512")
    fails(2, "three --merges", number="3")
    fails(2, "row 1 of table 3", number="3", merges=",".join([merge] * 3))
    fails(2, "s was trained with --boundary 0, row 3 of table 3 is with that term", number="3",
          merges=",".join([chunked, merge, merge]))
    fails(2, "b was trained with --boundary 0.5, row 2 of table 3 is without that term", number="3",
          merges=",".join([chunked, boundary, boundary]))
    fails(2, "more than 16", merges=",".join([merge] * 17))
    fails(3, "none", merges="none")
    fails(3, "text", merges=str(cli.folder / "text"))
    fails(3, "nothing to predict", "--skip", "5000", "-L", "4")
    fails(2, "--plot has no effect with table 1", "--plot", "x.svg")
    fails(3, "cannot write", "--plot", str(cli.folder / "no" / "x.svg"), "-L", "4", number="2")


def test_no_numbers(cli):
    merge = trained(cli, "s")
    cli.fails(3, "token 1, full: what is computed is no number", "eval", "table", "1", "-m", spoilt_model(cli), "-f",
              cli.text, "--merges", merge, "-L", "4", "-q")


if __name__ == "__main__":
    check.main(globals())
