"""GA-RPN's head and proposals in inference against an RPN's with 3 anchors per location."""

from . import harness, heads


def run(benchmark):
    rpns = heads.peers(training=False)
    guided = {"GA-RPN": heads.guided_rpn(conv=True).eval(), "GA-RPN without conv": heads.guided_rpn(conv=False).eval()}
    for fraction in harness.FRACTIONS:
        by_fraction(benchmark, guided, rpns, fraction)
    by_batch(benchmark, guided)


def forward(rpn, features, fraction):
    """A call of a GA-RPN at the threshold that makes a fraction of these features' locations active."""
    active = heads.activate(rpn, features, fraction)
    assert abs(active / fraction - 1) < 0.01, (active, fraction)
    selection, sizes = rpn.selection, [harness.IMAGE] * len(features[0])

    def call():
        rpn.selection = selection
        return rpn(features, sizes)

    return call


def by_fraction(benchmark, guided, rpns, fraction):
    features = harness.pyramid()
    functions = {}
    for name, rpn in guided.items():
        functions[name] = forward(rpn, features, fraction)
        functions[f"{name}, channels_last"] = forward(rpn, harness.channels_last(features), fraction)
    for name, peer in rpns.items():
        functions[name] = lambda p=peer: p(features)
    benchmark.compare(f"batch 1, {100 * fraction:g} % active", functions, peers=tuple(rpns))


def by_batch(benchmark, guided, fraction=0.1):
    functions = {}
    for images in (1, 2, 4, 8):
        features = harness.pyramid(images)
        for name, rpn in guided.items():
            functions[f"{name}, batch {images}"] = forward(rpn, features, fraction)

    def per_image(name, ms):
        return {"ms per image": ms[name] / int(name.split()[-1])}

    benchmark.compare(f"{100 * fraction:g} % active, by batch", functions, figures=per_image, memory=False)


if __name__ == "__main__":
    harness.main(run, __doc__, "ga_head")
