"""Sources of the methods, by the words with which a paragraph cites them."""

from __future__ import annotations

REFERENCES = {
    "Benjamini & Hochberg, 1995": (
        "Benjamini Y, Hochberg Y (1995). Controlling the false discovery rate: a practical and powerful approach "
        "to multiple testing. Journal of the Royal Statistical Society B 57, 289–300."
    ),
    "Benjamini & Yekutieli, 2001": (
        "Benjamini Y, Yekutieli D (2001). The control of the false discovery rate in multiple testing under "
        "dependency. Annals of Statistics 29, 1165–1188."
    ),
    "Benjamini, Krieger & Yekutieli, 2006": (
        "Benjamini Y, Krieger AM, Yekutieli D (2006). Adaptive linear step-up procedures that control the false "
        "discovery rate. Biometrika 93, 491–507."
    ),
    "Booth & Butler, 1990": (
        "Booth JG, Butler RW (1990). Randomization distributions and saddlepoint approximations in generalized linear "
        "models. Biometrika 77, 787–796."
    ),
    "Freedman & Lane, 1983": (
        "Freedman D, Lane D (1983). A nonstochastic interpretation of reported significance levels. Journal of "
        "Business & Economic Statistics 1, 292–298."
    ),
    "Haufe et al., 2014": (
        "Haufe S, Meinecke F, Görgen K, Dähne S, Haynes J-D, Blankertz B, Bießmann F (2014). On the interpretation of "
        "weight vectors of linear models in multivariate neuroimaging. NeuroImage 87, 96–110."
    ),
    "Hedges, 1981": (
        "Hedges LV (1981). Distribution theory for Glass’s estimator of effect size and related estimators. "
        "Journal of Educational Statistics 6, 107–128."
    ),
    "Kriegeskorte et al., 2008": (
        "Kriegeskorte N, Mur M, Bandettini P (2008). Representational similarity analysis – connecting the branches "
        "of systems neuroscience. Frontiers in Systems Neuroscience 2, 4."
    ),
    "MacKinnon & White, 1985": (
        "MacKinnon JG, White H (1985). Some heteroskedasticity-consistent covariance matrix estimators with "
        "improved finite sample properties. Journal of Econometrics 29, 305–325."
    ),
    "Mantel, 1967": (
        "Mantel N (1967). The detection of disease clustering and a generalized regression approach. Cancer Research "
        "27, 209–220."
    ),
    "Nichols & Holmes, 2002": (
        "Nichols TE, Holmes AP (2002). Nonparametric permutation tests for functional neuroimaging: a primer with "
        "examples. Human Brain Mapping 15, 1–25."
    ),
    "Ojala & Garriga, 2010": (
        "Ojala M, Garriga GC (2010). Permutation tests for studying classifier performance. Journal of Machine "
        "Learning Research 11, 1833–1863."
    ),
    "Phipson & Smyth, 2010": (
        "Phipson B, Smyth GK (2010). Permutation p-values should never be zero: calculating exact p-values when "
        "permutations are randomly drawn. Statistical Applications in Genetics and Molecular Biology 9, 39."
    ),
    "Pitman, 1938": (
        "Pitman EJG (1938). Significance tests which may be applied to samples from any populations: III. The "
        "analysis of variance test. Biometrika 29, 322–335."
    ),
    "Robinson, 1982": (
        "Robinson J (1982). Saddlepoint approximations for permutation tests and confidence intervals. Journal of the "
        "Royal Statistical Society B 44, 91–101."
    ),
    "Steiger, 2004": (
        "Steiger JH (2004). Beyond the F test: effect size confidence intervals and tests of close fit in the "
        "analysis of variance and contrast analysis. Psychological Methods 9, 164–182."
    ),
    "Welch, 1947": (
        "Welch BL (1947). The generalization of ‘Student’s’ problem when several different population variances "
        "are involved. Biometrika 34, 28–35."
    ),
    "Westfall & Young, 1993": (
        "Westfall PH, Young SS (1993). Resampling-based multiple testing: examples and methods for p-value "
        "adjustment. Wiley."
    ),
    "Winkler et al., 2016": (
        "Winkler AM, Ridgway GR, Douaud G, Nichols TE, Smith SM (2016). Faster permutation inference in brain "
        "imaging. NeuroImage 141, 502–516."
    ),
}


def references(paragraph: str) -> list[str]:
    """The sources that a methods paragraph names."""
    return [full for key, full in REFERENCES.items() if key in paragraph]
