"""One HTTP try, against real receivers."""

import datetime as dt
import socket
import ssl
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from penstock.webhooks.sender import Sender

from tests.platform.webhooks.receiver import Receiver, Reply, receiving


def make_sender(timeout_seconds: float = 5.0, **options: object) -> Sender:
    return Sender(timeout_seconds=timeout_seconds, allow_loopback=True, **options)  # type: ignore[arg-type]  # test's own


def test_what_is_sent_arrives(receiver: Receiver) -> None:
    answer = make_sender().post(receiver.url, {"webhook-id": "msg_1"}, b'{"a": "\xc3\xa9"}')
    (received,) = receiver.requests
    assert answer.delivered
    assert answer.error is None
    assert received.path == "/hook?x=1"
    assert received.body == b'{"a": "\xc3\xa9"}'
    assert received.headers["webhook-id"] == "msg_1"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"


def test_the_answer_is_kept_up_to_2_kb(receiver: Receiver) -> None:
    receiver.replies.append(Reply(500, body=b"no\0" + b"x" * 100_000))
    answer = make_sender().post(receiver.url, {}, b"{}")
    assert (answer.status, answer.delivered) == (500, False)
    assert answer.body == "no\N{REPLACEMENT CHARACTER}" + "x" * 2045


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.replies.append(Reply(302, {"Location": receiver.url}))
    answer = make_sender().post(receiver.url, {}, b"{}")
    assert (answer.status, answer.delivered, len(receiver.requests)) == (302, False, 1)


def test_a_body_that_drips_ends_at_the_deadline(receiver: Receiver) -> None:
    receiver.replies.append(Reply(200, body=b"x" * 2000, drip=0.05))
    answer = make_sender(timeout_seconds=0.4).post(receiver.url, {}, b"{}")
    assert answer.status is None
    assert answer.error == "no complete answer within 0.4 s"
    assert answer.milliseconds >= 400


def test_headers_that_drip_end_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not ended.wait(0.05):
                    connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        answer = make_sender(timeout_seconds=0.4).post(f"http://127.0.0.1:{server.getsockname()[1]}/", {}, b"{}")
        ended.set()
        thread.join()
    assert answer.error == "no complete answer within 0.4 s"


def test_nobody_there_is_an_error_that_may_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    answer = make_sender().post(f"http://127.0.0.1:{port}/", {}, b"{}")
    assert answer.error is not None
    assert "refused" in answer.error
    assert not answer.hopeless


def test_an_unknown_name_is_an_error_that_may_pass() -> None:
    answer = make_sender().post("http://no-such-host.invalid/", {}, b"{}")
    assert answer.error is not None
    assert not answer.hopeless


def test_garbage_is_an_error_that_may_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_garbage() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"this is not HTTP\r\n\r\n")

        thread = threading.Thread(target=answer_garbage)
        thread.start()
        answer = make_sender().post(f"http://127.0.0.1:{server.getsockname()[1]}/", {}, b"{}")
        thread.join()
    assert answer.error is not None
    assert "RemoteProtocolError" in answer.error


def test_a_refused_address_is_hopeless_and_nothing_is_sent(receiver: Receiver) -> None:
    sender = Sender(timeout_seconds=5.0, allow_loopback=False)
    answer = sender.post(receiver.url, {}, b"{}")
    assert answer.hopeless
    assert answer.error is not None
    assert "loopback" in answer.error
    assert receiver.requests == []


def test_the_connection_goes_to_the_checked_address_whatever_the_name_says_later(receiver: Receiver) -> None:
    answers = [["127.0.0.1"], ["203.0.113.1"]]
    sender = make_sender(resolver=lambda _host, _port: answers.pop(0))
    answer = sender.post(f"http://rebinding.example:{receiver.port}/", {}, b"{}")
    assert answer.delivered
    assert receiver.requests[0].headers["host"] == f"rebinding.example:{receiver.port}"
    assert len(answers) == 1


def test_the_next_checked_address_is_tried_when_one_does_not_answer(receiver: Receiver) -> None:
    sender = make_sender(resolver=lambda _host, _port: ["::1", "127.0.0.1"])
    assert sender.post(f"http://two.example:{receiver.port}/", {}, b"{}").delivered


def test_tls_is_checked_against_the_name_not_the_address(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "hooks.example")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    sender = make_sender(resolver=lambda _host, _port: ["127.0.0.1"], ssl_context=trusting)
    with receiving(serving) as receiver:
        right = sender.post(f"https://hooks.example:{receiver.port}/", {}, b"{}")
        wrong = sender.post(f"https://other.example:{receiver.port}/", {}, b"{}")
    assert right.delivered
    assert wrong.error is not None
    assert "other.example" in wrong.error
    assert [request.headers["host"] for request in receiver.requests] == [f"hooks.example:{receiver.port}"]


def make_certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for `name` with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path
