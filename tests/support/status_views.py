"""A status page in which one text stands in every place that a text can have."""

from wardpose.shared.status_view import Cell, Curve, Fact, Finding, StatusView, Table

HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{ 7*7 }}\x1b[31m\u202egnp.\n<b>"


def view(text: str = "north", *, local: bool = False) -> StatusView:
    """A page in which the text stands in every place that a text can have."""
    return StatusView(
        role="coordinator",
        name=text,
        headline=text,
        tone="bad",
        next_step=text,
        last_error=text,
        last_error_local=local,
        findings=(Finding(tone="bad", what=text, todo=text, local=local),),
        facts=(Fact(name=text, value=text, note=text, share=0.5, local=local),),
        tables=(
            Table(
                title=text,
                headings=(text, text),
                rows=((Cell(text=text, note=text), Cell(text=text, note=text, share=1.0)),),
                note=text,
                local=local,
            ),
            Table(title=text, headings=(text,), rows=(), empty=text, local=local),
        ),
        curve=Curve(title=text, points=((1, 0.1), (2, 0.3)), levels=((text, 0.2), (text, 0.25))),
        footer=text,
        made=1.7e9,
    )
