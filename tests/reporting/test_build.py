"""The report as a file: complete, self-contained, small, honest about missing parts, closed to hostile text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from support.pages import Page
from support.results import QUESTIONS, changed, contrast_result, trials

from neurollm.designs import FactorialDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import slug, write_json
from neurollm.glm import ContrastResult, FeatureGLM
from neurollm.reporting import build_report, verdicts
from neurollm.reporting.features import condition_groups, feature_row, table_data
from neurollm.reporting.references import REFERENCES

N_FEATURES = 1200


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return Page((finished / "report.html").read_text(encoding="utf-8"))


def test_every_section_is_there(page):
    text = " ".join(page.text.split())
    for words in (
        "tested features respond",
        "No feature of",
        "The token embeddings alone separate these conditions as well",
        "2 stimuli share the same text.",
        "168 stimuli built on 28 items varied the factor outcome",
        "Stimuli per cell of outcome and wording.",
        "word counts reach AUROC .89",
        "the sign of the difference is flipped in each of the 28 items",
        "28 268,435,456",
        "t with 27 degrees of freedom. p is uncorrected and comes from the permutation distribution itself",
        "The test had a power of 80% for effects of gz =",
        "Explained variance .872",
        "neurollm run pipelines/success.yaml",
        "stimuli: stimuli/success.tsv",
        "1 min 35 s",
        "9f9f9f",
    ):
        assert words in text, words


def test_it_loads_nothing(finished, page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, name, target)
    html = (finished / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html and "https://" not in html
    assert not re.search(r"url\((?!#)", html)


def test_the_policy_allows_only_the_page_own_script(finished, page):
    (policy,) = [meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    html = (finished / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe-eval" not in policy
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_it_is_small(finished):
    assert (finished / "report.html").stat().st_size < 2_000_000


def test_it_stays_small_when_every_token_is_active(study):
    contexts = json.loads((study / "contexts.json").read_text())
    for features in contexts.values():
        for entries in features.values():
            for entry in entries:
                entry["tokens"] = [[word, 1.0 + i % 9] for i, (word, _) in enumerate(entry["tokens"] * 3)]
    (study / "contexts.json").write_text(json.dumps(contexts))
    assert build_report(study).stat().st_size < 2_000_000


def test_the_page_is_accessible(page):
    levels = page.headings
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in page.named("svg"))
    assert len(page.named("svg")) == 7
    assert len(page.named("caption")) == len(page.named("table"))
    assert all("scope" in th for th in page.named("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for a in page.named("a")}
    assert links <= set(ids)


def test_it_is_complete_without_javascript(finished):
    html = re.sub(r"<script.*?</script>", "", (finished / "report.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    page = Page(html)
    assert len(page.named("tbody")) > 100
    assert html.count('class="toggle"') == 100
    assert "committee" in page.text


def test_table_data_are_valid_json(finished):
    html = (finished / "report.html").read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.DOTALL)
    assert len(found) == 2
    for text in found:
        data = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
        assert len(data["rows"]) == 50 and all(len(row) == len(data["columns"]) for row in data["rows"])
        p = [row[data["columns"].index("p_fwer")] for row in data["rows"]]
        assert p == sorted(p)


def test_hostile_text_is_only_text(tmp_path, make_study, hostile):
    level = "success" + hostile[:60]
    folder = make_study(tmp_path / "study", hostile=hostile, levels=("success", "failure"), n_perm=200,
                        contrasts={"c " + hostile: "success - failure"}, name="study")  # fmt: skip
    _rename_level(folder, level)
    html = build_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.named("script")) == 2
    assert not page.named("img") and not page.named("iframe")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any("javascript:" in (a.get("href") or "") for _, a in page.tags)
    assert "{{7*7}}" in page.text and " 49 " not in page.text
    assert page.text.count("<script>window.hacked=1</script>") > 100
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        assert not re.search(r"<(script|style|a|foreignObject|metadata)\b", svg)


def _rename_level(folder, name):
    """Give a level a name that the contrast syntax would not take, as a foreign tool might."""
    design = json.loads((folder / "design.json").read_text())
    design["variables"]["outcome"][0] = name
    design["matrix"]["columns"][0] = name
    for cell in design["cells"]:
        cell["level"] = cell["level"].replace("success", name)
    (folder / "design.json").write_text(json.dumps(design))
    for path in (folder / "glm").glob("*.json"):
        result = ContrastResult.load(path)
        names = tuple(level.replace("success", name) for level in result.contrast.parameters)
        used = tuple(level.replace("success", name) for level in result.conditions)
        contrast = dataclasses.replace(result.contrast, parameters=names)
        dataclasses.replace(result, contrast=contrast, conditions=used).save(path.parent)


def test_control_characters_and_lone_surrogates_can_be_written(study):
    manifest = json.loads((study / "manifest.json").read_text())
    manifest["name"] = "a\x00b\u202ec\ud800d"
    (study / "manifest.json").write_text(json.dumps(manifest))
    assert "a�b�c�d" in build_report(study).read_text(encoding="utf-8")


def test_nothing_significant_is_said_beside_the_table(study):
    text = " ".join(Page((study / "report.html").read_text(encoding="utf-8")).text.split())
    assert "No feature is significant. The table shows the 50 with the largest statistic" in text


def test_optional_parts_may_be_missing(study):
    for name in ("audit.json", "contexts.json", "controls.json", "dictionary.json", "config.yaml"):
        (study / name).unlink()
    (study / "manifest.json").write_text("{}")
    design = json.loads((study / "design.json").read_text())
    (study / "design.json").write_text(json.dumps({"contrasts": design["contrasts"]}))
    text = Page(build_report(study).read_text(encoding="utf-8")).text
    for words in ("No stimulus audit was saved", "No contexts were saved for this contrast", "No control was run",
                  "design matrix was not recorded", study.name):  # fmt: skip
        assert words in text


def test_a_study_without_contrasts(study):
    (study / "design.json").write_text("{}")
    assert "defines no contrast" in build_report(study).read_text(encoding="utf-8")


def test_no_testable_feature(tmp_path, make_study):
    folder = make_study(tmp_path / "s", n_items=4, n_perm=50, contrasts={"a": "success - failure"})
    (saved,) = list((folder / "glm").glob("*.json"))
    nothing = np.full(N_FEATURES, np.nan)
    numbers = dict.fromkeys(("stat", "df", "p", "q", "p_fwer", "effect_size"), nothing)
    changed(ContrastResult.load(saved), **numbers, null_max=np.full(16, np.nan)).save(folder / "glm")
    text = Page(build_report(folder).read_text(encoding="utf-8")).text
    assert "No feature could be tested" in text


def test_top_limits_the_rows(study):
    html = build_report(study, top=3).read_text(encoding="utf-8")
    assert html.count('class="toggle"') == 6
    with pytest.raises(InvalidInput, match="at least one feature"):
        build_report(study, top=0)


def test_building_again_gives_the_same_file(study):
    first = (study / "report.html").read_bytes()
    assert build_report(study).read_bytes() == first


def test_errors_name_the_file(study, tmp_path):
    with pytest.raises(InvalidInput, match="no study folder"):
        build_report(tmp_path / "nowhere")
    (study / "audit.json").write_text("[1,")
    with pytest.raises(DataMismatch, match=r"audit\.json is not readable as JSON"):
        build_report(study)
    (study / "audit.json").write_text("{}")
    with pytest.raises(DataMismatch, match="should hold a list"):
        build_report(study)
    (study / "audit.json").unlink()
    (study / "config.yaml").write_text("a: [")
    with pytest.raises(DataMismatch, match=r"config\.yaml is not readable as YAML"):
        build_report(study)
    (study / "config.yaml").unlink()
    (study / "glm" / f"{slug('success - failure')}.json").unlink()
    with pytest.raises(DataMismatch, match="'success - failure'"):
        build_report(study)
    (study / "manifest.json").unlink()
    with pytest.raises(InvalidInput, match=r"manifest\.json is missing"):
        build_report(study)


def test_verdicts_for_the_terminal(study):
    first, second = verdicts(study)
    assert first.startswith("success - failure: ") and "as well: AUROC .89" in first
    assert second.startswith("neutral - failure: No feature of")


def test_run_times_are_optional(study):
    manifest = json.loads((study / "manifest.json").read_text())
    del manifest["seconds"], manifest["started"], manifest["finished"]
    (study / "manifest.json").write_text(json.dumps(manifest))
    text = Page(build_report(study).read_text(encoding="utf-8")).text
    assert "log.json" in text and "Started" not in text


def test_too_few_shufflings_are_a_warning(tmp_path, make_study):
    folder = make_study(tmp_path / "s", n_items=4, n_perm=500, contrasts={"a": "success - failure"})
    text = Page(build_report(folder).read_text(encoding="utf-8")).text
    assert "all 16 possible sign-flips by item" in text and "nothing could have been significant" in text


def test_every_contrast_shows_its_own_scheme(study):
    file = sorted((study / "glm").glob("*.json"))[0]
    saved = json.loads(file.read_text())
    exchange = saved["exchange"] | {"sentence": "Whole items are shuffled.", "n_possible": hex(3**3000)}
    write_json(file, saved | {"exchange": exchange})
    text = " ".join(Page(build_report(study).read_text(encoding="utf-8")).text.split())
    assert f"{saved['contrast']['name']}: Whole items are shuffled." in text and text.count("Every item has both") == 2
    assert "2.3 × 10¹⁴³¹" in text


def test_every_source_of_contexts_is_shown(study):
    contexts = json.loads((study / "contexts.json").read_text())
    name, features = next(iter(contexts.items()))
    feature, entries = next(iter(features.items()))
    contexts[name][feature] = [entries[0] | {"source": source} for source in ("a", "b", "c") for _ in range(12)]
    write_json(study / "contexts.json", contexts)
    html = build_report(study).read_text(encoding="utf-8")
    assert [html.count(f'<span class="chip rest">{source}</span>') for source in "abc"] == [10, 10, 10]


@pytest.mark.parametrize(
    ("tokens", "pool", "said"),
    [
        ("target", "mean", "averaged over the tokens of the target of each stimulus"),
        ("left:3", "max", "reduced to their maximum over the first 3 tokens of each stimulus"),
        ("centre:1", "sum", "read at the middle token of each stimulus"),
        ("last", "last", "read at the last token of each stimulus"),
        ("content", "last", "read at the last of all tokens of each stimulus"),
    ],
)
def test_windows_in_words(study, tokens, pool, said):
    manifest = json.loads((study / "manifest.json").read_text())
    write_json(study / "manifest.json", manifest | {"tokens": tokens, "pool": pool})
    assert said in Page(build_report(study).read_text(encoding="utf-8")).text


def study_of(folder, *results, config="", top=5):
    """A study folder of nothing but results."""
    for result in results:
        result.save(folder / "glm")
    write_json(folder / "manifest.json", {"name": "kinds"})
    write_json(folder / "design.json", {"contrasts": {result.name: result.contrast.expression for result in results}})
    (folder / "config.yaml").write_text(config)
    html = build_report(folder, top=top).read_text(encoding="utf-8")
    return html, " ".join(Page(html).text.split())


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (
            "paired",
            {},
            ["tested by a paired t statistic over items", "Booth JG, Butler RW (1990)", "Hedges LV (1981)"],
        ),
        ("several", {}, ["an additive model of items and levels", "Pearson type III distribution", "Winkler AM"]),
        ("levels", {}, ["an F statistic with 2 numerator degrees of freedom", "the beta distribution", "Steiger JH"]),
        ("interaction", {}, ["labels within items", "of the beta distribution", "root mean square"]),
        ("between", {}, ["a two-sample t statistic over items", "shufflings of whole items"]),
        ("between", {"stat": "welch"}, ["Welch’s t statistic with a variance of its own", "Welch BL (1947)"]),
        ("between", {"stat": "hc3"}, ["heteroscedasticity-consistent standard errors (HC3", "MacKinnon JG"]),
        ("between", {"scale": "rank"}, ["computed on ranks", "Effect: mean difference in ranks"]),
        (
            "coefficient",
            {},
            ["t statistic of a coefficient", "of the residuals of what was held constant", "Freedman D"],
        ),
        (
            "paired",
            {"fdr": "by"},
            ["the method of Benjamini–Yekutieli (Benjamini & Yekutieli, 2001)", "under dependency"],
        ),
        ("paired", {"fdr": "bky"}, ["false discovery rate (Benjamini–Krieger–Yekutieli)", "Adaptive linear step-up"]),
        ("paired", {"n_perm": 0}, ["The false discovery rate over the 80 tested features was controlled at .05"]),
    ],
)
def test_methods_of_every_kind_of_test(tmp_path, kind, options, said):
    _, text = study_of(tmp_path, contrast_result(kind, **options))
    for words in said:
        assert words in text, words


def test_only_the_sources_that_are_named_are_listed(tmp_path):
    _, text = study_of(tmp_path, contrast_result("paired", n_perm=0))
    assert "Benjamini Y, Hochberg Y (1995)" in text and "Nichols TE" not in text and "Welch" not in text
    assert all(re.search(r"\(\d{4}\)", full) and key[-4:] in full for key, full in REFERENCES.items())


def test_a_pareto_tail_is_told(tmp_path):
    words = "a generalised Pareto distribution fitted to the largest statistics"
    for tail, told in (("gpd", True), ("permutation", False)):
        result = contrast_result("paired", tail=tail)
        assert result.tail == tail and (words in study_of(tmp_path, result)[1]) == told


def test_several_kinds_of_tests_are_told_apart(tmp_path):
    _, text = study_of(tmp_path, contrast_result("levels"), contrast_result("paired"))
    assert "(Pitman, 1938), for emotion; " in text
    assert "for success - failure" in text


@pytest.mark.filterwarnings("ignore:contrast .* shufflings")
def test_it_stays_small_with_many_contrasts(tmp_path):
    names = list("abcde")
    cells = [(f"i{i}", *cell) for i in range(6) for cell in itertools.product("xy", repeat=5)]
    obs = pd.DataFrame(cells, columns=["item", *names])
    X = np.random.default_rng(0).exponential(size=(len(obs), 300))
    results = FeatureGLM(FactorialDesign(names), n_perm=49).fit(X, obs).compute_contrasts()
    entry = {"document": "d", "source": "books", "peak": 3, "tokens": [[" word", 1.0 + i] for i in range(80)]}
    contexts = {name: {str(feature): [entry] * 5 for feature in found.strongest(20)} for name, found in results.items()}
    write_json(tmp_path / "contexts.json", contexts)
    html, text = study_of(tmp_path, *results.values(), top=500)
    assert len(results) == 31 and html.count('class="toggle"') > 31 * 10 and "a:b:c:d:e" in text
    assert len(html.encode()) < 2_000_000


def means(kind, by):
    """Mean rate of every feature in every condition, straight from the trials."""
    X, obs = trials()
    return pd.DataFrame((X != 0).astype(float)).groupby([obs["item"], obs[by]]).mean().groupby(level=1).mean()


@pytest.mark.parametrize("kind", ["levels", "main effect"])
def test_conditions_of_an_f_contrast_are_the_levels_it_compares(kind):
    groups = condition_groups(contrast_result(kind))
    assert groups.names == ("anger", "fear", "joy")
    np.testing.assert_allclose(groups.rate, means(kind, "emotion").loc[list(groups.names)].to_numpy())


def test_conditions_of_a_t_contrast_are_its_sides():
    groups = condition_groups(contrast_result("several"))
    expected = means("several", "emotion")
    assert groups.names == ("joy", "anger and fear")
    np.testing.assert_allclose(groups.rate[0], expected.loc["joy"])
    np.testing.assert_allclose(groups.rate[1], expected.loc[["anger", "fear"]].mean())


def test_of_many_conditions_the_strongest_are_named(tmp_path):
    result = contrast_result("interaction")
    groups = condition_groups(result)
    row = feature_row(result, 2, 0.05, groups, [])
    assert len(groups.names) == 6 and not groups.has_columns
    assert row.strongest[0][0] == "success:joy" and len(row.strongest) == 3
    html, text = study_of(tmp_path, result)
    assert "strongest conditions: rate, magnitude" in text and "success:joy" in text and 'data-key="rate_0"' not in html


def test_copied_tables_name_the_conditions():
    result = contrast_result("levels")
    groups = condition_groups(result)
    data = table_data([feature_row(result, 1, 0.05, groups, [])], groups, "eta2")
    assert {"rate[joy]", "magnitude[anger]", "eta2_low", "p_step_down"} <= set(data["titles"])
    assert len(data["titles"]) == len(data["columns"]) == len(data["rows"][0])


@pytest.mark.parametrize("kind", QUESTIONS)
def test_every_kind_of_contrast_makes_a_sound_page(tmp_path, kind):
    html, text = study_of(tmp_path, contrast_result(kind))
    page = Page(html)
    assert len(page.named("caption")) == len(page.named("table"))
    wide = [sum(int(cell.get("colspan", 1)) for cell in cells) for cells in _cells_of_rows(html)]
    assert len(set(wide)) == 1 and wide[0] >= 10
    assert " nan" not in text.lower() and "None" not in text


def _cells_of_rows(html):
    """Attributes of the cells of every row of the feature table."""
    (table,) = re.findall(r'<table class="grid">.*?</table>', html, flags=re.DOTALL)
    for row in re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL):
        yield [attributes for tag, attributes in Page(row).tags if tag in ("td", "th")]
