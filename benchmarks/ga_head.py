"""GA-RPN's head and proposals in inference against an RPN's with 3 anchors per location."""

from . import harness, heads


def run(benchmark):
    rpns = heads.peers(training=False)
    guided = {"GA-RPN": heads.guided_rpn(conv=True).eval(), "GA-RPN without conv": heads.guided_rpn(conv=False).eval()}
    for images, fraction in [(1, fraction) for fraction in harness.FRACTIONS] + [(n, 0.1) for n in (2, 4, 8)]:
        compare(benchmark, guided, rpns, images, fraction)


def compare(benchmark, guided, rpns, images, fraction):
    features = harness.pyramid(images)
    last = harness.channels_last(features)
    sizes = [harness.IMAGE] * images
    functions = {}
    for name, rpn in guided.items():
        active = heads.activate(rpn, features, fraction)
        assert abs(active / fraction - 1) < 0.01, (active, fraction)
        functions[name] = lambda r=rpn: r(features, sizes)
        functions[f"{name}, channels_last"] = lambda r=rpn: r(last, sizes)
    for name, peer in rpns.items():
        functions[name] = lambda p=peer: p(features)
    case = f"batch {images}, {100 * fraction:g} % active"
    benchmark.compare(case, functions, peers=tuple(rpns), memory=images == 1)


if __name__ == "__main__":
    harness.main(run, __doc__, "ga_head")
