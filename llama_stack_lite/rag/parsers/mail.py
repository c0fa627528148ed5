"""Mail as a file: whom it is from and to, and its text; what is attached is not read."""

from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from io import BytesIO

from .document import Block, Document
from .text import paragraphs
from .web import read as read_page


def read(document: Document) -> Iterator[Block]:
    """The headers that people read, then the plain text, or the HTML where there is no other."""
    mail = message_from_bytes(document.data(), policy=policy.default)
    assert isinstance(mail, EmailMessage)
    document.title = str(mail["subject"]) if mail["subject"] else None
    said = [f"{name}: {mail[name]}" for name in ("From", "To", "Cc", "Date", "Subject") if mail[name]]
    yield Block("text", "\n".join(said))
    body = mail.get_body(preferencelist=("plain", "html"))
    content = body.get_content() if body else ""
    if body and body.get_content_subtype() == "html":
        data = f"<meta charset=utf-8>{content}".encode("utf-8", "replace")
        yield from read_page(Document(BytesIO(data), "body.html", limit=document.limit))
    else:
        for paragraph in paragraphs(str(content).replace("\r\n", "\n")):
            yield Block("text", "\n".join(paragraph))
