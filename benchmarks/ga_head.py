"""GA-RPN's head and proposals in inference against an RPN's with 3 anchors per location."""

from . import harness, heads


def run(benchmark):
    rpns = heads.peers(training=False)
    guided = {conv: heads.guided_rpn(conv).eval() for conv in (True, False)}
    for images in (1, 2, 4, 8):
        features = harness.pyramid(images)
        last = harness.channels_last(features)
        sizes = [harness.IMAGE] * images
        fractions = harness.FRACTIONS if images == 1 else (0.1,)
        for fraction in fractions:
            for rpn in guided.values():
                active = heads.activate(rpn, features, fraction)
                assert abs(active / fraction - 1) < 0.01, (active, fraction)
            functions = {}
            for conv, rpn in guided.items():
                name = "GA-RPN" if conv else "GA-RPN without conv"
                functions[name] = lambda r=rpn: r(features, sizes)
                functions[f"{name}, channels_last"] = lambda r=rpn: r(last, sizes)
            if images in (1, 8):
                functions |= {name: lambda p=peer: p(features) for name, peer in rpns.items()}
            benchmark.compare(
                f"batch {images}, {100 * fraction:g} % active", functions, peers=tuple(rpns), memory=images == 1
            )


if __name__ == "__main__":
    harness.main(run, __doc__, "ga_head")
