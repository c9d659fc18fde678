"""Which features of the demo model respond differently to success and failure?

    python examples/first_study.py

Runs from any folder: the stimuli are those that ship with neurollm.
"""

from __future__ import annotations

from neurollm import CategoricalDesign, FeatureGLM, FeatureMasker, StimulusSet, load_dictionary, load_model
from neurollm.datasets import example_project_path
from neurollm.decoding import separability
from neurollm.dictionaries import RawUnits
from neurollm.models import Site

lm, sae = load_model("demo"), load_dictionary("demo")
stimuli = StimulusSet.read_tsv(example_project_path() / "stimuli" / "success.tsv")
print(stimuli.audit())

trials = FeatureMasker(lm, sae, tokens="target").fit_transform(stimuli)
glm = FeatureGLM(CategoricalDesign("outcome"), n_perm=2_000, min_active_items=8).fit(trials)
result = glm.compute_contrast("success - failure")
print(result.verdict())
columns = ["feature", "g", "rate[success]", "rate[failure]", "p", "q", "p_fwer"]
print(result.to_frame().head(10)[columns].to_string(index=False, float_format="{:.3g}".format))

# The control that decides what the verdict means: do the words alone separate the conditions as well?
words = FeatureMasker(lm, RawUnits(Site(0, "token_embedding"), lm.d_model), tokens="target").fit_transform(stimuli)
for name, which in {"features": trials, "token embeddings": words}.items():
    score = separability(which.X, which.obs["outcome"], which.obs["item"])
    print(f"{name}: AUROC {score.auroc:.2f} [{score.ci_low:.2f}, {score.ci_high:.2f}] on held-out items")
