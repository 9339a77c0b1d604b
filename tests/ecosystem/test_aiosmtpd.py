"""aiosmtpd with STARTTLS, which it does on the transport by itself; the client is smtplib in threads."""

import asyncio
import smtplib

import pytest

smtp = pytest.importorskip("aiosmtpd.smtp")


class Mailbox:
    def __init__(self):
        self.messages = []

    async def handle_DATA(self, server, session, envelope):
        await asyncio.sleep(0)
        self.messages.append((envelope.mail_from, envelope.rcpt_tos, envelope.content, session.ssl is not None))
        return "250 kept"


def send(port, context, number):
    with smtplib.SMTP("localhost", port, timeout=20) as client:
        if number % 2:
            client.starttls(context=context)
        text = f"Subject: {number}\n\n" + "line\n" * 1000 * number
        refused = client.sendmail("a@example.org", [f"{number}@example.org"], text)
        return refused, client.docmd("NONSENSE")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Requiring AUTH:UserWarning")
def test_messages(same, authority):
    async def program():
        mailbox = Mailbox()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: smtp.SMTP(mailbox, hostname="here", tls_context=authority.server, loop=loop), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        answers = await asyncio.gather(*[asyncio.to_thread(send, port, authority.client, i) for i in range(12)])
        server.close()
        await server.wait_closed()
        return answers, sorted(mailbox.messages, key=lambda message: int(message[1][0].split("@")[0]))

    answers, messages = same(program)
    assert [refused for refused, _ in answers] == [{}] * 12 and {code for _, (code, _) in answers} == {500}
    for number, (sender, recipients, content, is_tls) in enumerate(messages):
        assert (sender, recipients, is_tls) == ("a@example.org", [f"{number}@example.org"], bool(number % 2))
        assert content.count(b"line\r\n") == 1000 * number
