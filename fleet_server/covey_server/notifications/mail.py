"""E-mail, handed to the mail server that the settings name."""

from __future__ import annotations

import email.utils
import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from covey_server.settings import Settings

TIMEOUT_S = 10.0
_MAX_PASSWORD = 1024
_MAX_SUBJECT = 150


class MailError(Exception):
    """The mail server did not take it. `permanent`: it never will."""

    def __init__(self, words: str, *, permanent: bool = False) -> None:
        self.permanent = permanent
        super().__init__(words)


@dataclass(frozen=True)
class Letter:
    """What is mailed. `key` is the same in every attempt."""

    key: str
    recipient: str
    subject: str
    text: str
    at_ms: int


class Mailer:
    """Sends one letter at a time; a connection each, since there are few. `context` is for tests of TLS."""

    def __init__(self, settings: Settings, context: ssl.SSLContext | None = None) -> None:
        self._settings = settings
        self._context = context

    @property
    def sender(self) -> str:
        return self._settings.mail_from or f"covey@{self._settings.reachable_host.strip('[]')}"

    def send(self, letter: Letter) -> None:
        """Raises `MailError`."""
        if not self._settings.smtp_host:
            raise MailError("no mail server is set (smtp_host)", permanent=True)
        try:
            with self._connected() as server:
                server.send_message(self._message(letter), self.sender, [letter.recipient])
        except smtplib.SMTPRecipientsRefused as error:
            code, words = next(iter(error.recipients.values()))
            raise MailError(f"{code} {_text(words)}", permanent=code >= 500) from error
        except smtplib.SMTPResponseException as error:
            # Credentials may be mended; an address that is refused will not be.
            wrong_letter = error.smtp_code >= 550 and not isinstance(error, smtplib.SMTPAuthenticationError)
            raise MailError(f"{error.smtp_code} {_text(error.smtp_error)}", permanent=wrong_letter) from error
        except (smtplib.SMTPException, OSError) as error:
            raise MailError(str(error) or type(error).__name__) from error

    def _connected(self) -> smtplib.SMTP:
        use = self._settings
        context = self._context or ssl.create_default_context()
        if use.smtp_security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(use.smtp_host, use.smtp_port, timeout=TIMEOUT_S, context=context)
        else:
            server = smtplib.SMTP(use.smtp_host, use.smtp_port, timeout=TIMEOUT_S)
        try:
            if use.smtp_security == "starttls":
                server.starttls(context=context)
            if use.smtp_user:
                server.login(use.smtp_user, self._password())
        except BaseException:
            server.close()
            raise
        return server

    def _password(self) -> str:
        file = self._settings.smtp_password_file
        if not file:
            raise MailError("smtp_user is set and smtp_password_file is not")
        with Path(file).open() as opened:
            return opened.read(_MAX_PASSWORD).strip()

    def _message(self, letter: Letter) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self.sender
        message["To"] = letter.recipient
        message["Subject"] = " ".join(letter.subject.split())[:_MAX_SUBJECT]
        message["Date"] = email.utils.formatdate(letter.at_ms / 1000)
        message["Message-ID"] = f"<{letter.key}@{self.sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(letter.text)
        return message


def _text(words: bytes | str) -> str:
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
    return " ".join(text.split())[:300]
