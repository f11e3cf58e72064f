"""A cluster of real Apache Kafka brokers on loopback, each also a controller (KRaft)."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from support.kafka.jars import kafka_jars

START_S = 90.0
HERE = Path(__file__).parent

# A broker for tests starts in two CPU seconds so, and takes 350 MB.
JVM = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx320m", "-Xshare:auto"]

# What tests wait for must not take the minutes that are right for a real cluster.
QUICK: Mapping[str, Any] = {
    "auto.create.topics.enable": "false",
    "broker.heartbeat.interval.ms": 300,
    "broker.session.timeout.ms": 3000,
    "controlled.shutdown.enable": "true",
    "group.initial.rebalance.delay.ms": 0,
    "log.cleaner.backoff.ms": 200,
    "log.cleaner.dedupe.buffer.size": 4 << 20,
    "log.initial.task.delay.ms": 500,
    "log.retention.check.interval.ms": 500,
    "log.segment.delete.delay.ms": 100,
    "message.max.bytes": 16 << 20,
    "replica.lag.time.max.ms": 3000,
    "offsets.topic.num.partitions": 1,
    "share.coordinator.state.topic.num.partitions": 1,
    "transaction.state.log.num.partitions": 1,
    "transaction.max.timeout.ms": 900_000,
}


@dataclass(frozen=True)
class Security:
    """What the listener for clients demands.

    protocol  as in Kafka: SSL, SASL_PLAINTEXT or SASL_SSL
    pem       with TLS: folder with server.pem (key and certificate) and ca.pem
    users     with SASL: name -> password, for SCRAM-SHA-256 and SCRAM-SHA-512
    mutual    with TLS: a client without a certificate of that authority is refused
    """

    protocol: str
    pem: Path | None = None
    users: Mapping[str, str] = field(default_factory=dict)
    mutual: bool = False

    def properties(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self.pem is not None:
            options |= {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": self.pem / "server.pem",
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": self.pem / "ca.pem",
                "ssl.client.auth": "required" if self.mutual else "none",
            }
        if self.users:
            options["sasl.enabled.mechanisms"] = "SCRAM-SHA-256,SCRAM-SHA-512"
            for mechanism in ("scram-sha-256", "scram-sha-512"):
                options[f"listener.name.client.{mechanism}.sasl.jaas.config"] = (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                )
        return options

    def scram(self) -> list[str]:
        """Arguments of the storage tool that make the users."""
        return [
            argument
            for name, password in self.users.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for argument in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]


class Cluster:
    """Brokers with node ids 1 to `size`, their data in a folder. Started by `running_cluster`."""

    def __init__(
        self, folder: Path, size: int = 1, security: Security | None = None, properties: Mapping[str, Any] | None = None
    ) -> None:
        self._jars = kafka_jars()
        self._folder = folder
        self._security = security
        self._properties = dict(properties or {})
        self.nodes = range(1, size + 1)
        ports = _free_ports(3 * size)
        self._ports = {node: ports[3 * (node - 1) : 3 * node] for node in self.nodes}  # client, inside, controller
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        self._admin: AdminClient | None = None
        # The kernel ends a broker with the thread that started it, so that one lives as long as the cluster.
        self._launcher = ThreadPoolExecutor(1)

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect; with security, as that demands."""
        return ",".join(f"127.0.0.1:{client}" for client, _, _ in self._ports.values())

    @property
    def inside_servers(self) -> str:
        """Where brokers connect: in plaintext, whatever the security."""
        return ",".join(f"127.0.0.1:{inside}" for _, inside, _ in self._ports.values())

    @property
    def admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self.inside_servers, "log_level": 0})
        return self._admin

    def start_all(self) -> None:
        """Formats and starts every broker; returns once all of them serve."""
        with ThreadPoolExecutor() as pool:  # each is a JVM of its own, for a second
            list(pool.map(self._format, self.nodes))
        for node in self.nodes:
            self._launch(node)
        self.wait_until_serving()

    def start(self, node: int) -> None:
        """Starts a broker that was killed or stopped; returns once it serves."""
        self._admin = None  # a client that has seen brokers die is slow for a while
        self._launch(node)
        self.wait_until_serving()

    def kill(self, node: int) -> None:
        """SIGKILL, as when a machine dies."""
        process = self._processes.pop(node)
        self._admin = None
        process.kill()
        process.wait()

    def stop(self, node: int) -> None:
        """SIGTERM: hands its partitions over, and ends."""
        process = self._processes.pop(node)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        """Kills what still runs: its data is thrown away."""
        self._admin = None
        for node in list(self._processes):
            self.kill(node)
        self._launcher.shutdown()

    def running(self) -> list[int]:
        return sorted(self._processes)

    def wait_until_serving(self) -> None:
        """Until every broker that runs answers by itself, and knows all of them.

        What the others say of it is not enough: for a while they do not miss one that was killed.
        """
        deadline = time.monotonic() + START_S
        for node in self._processes:
            asked = AdminClient({"bootstrap.servers": f"127.0.0.1:{self._ports[node][1]}", "log_level": 0})
            while True:
                code = self._processes[node].poll()
                if code is not None:
                    raise RuntimeError(f"broker {node} ended with code {code}:\n{self.log(node)}")
                with contextlib.suppress(KafkaException):
                    if set(asked.list_topics(timeout=2).brokers) >= set(self._processes):
                        break
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not up after {START_S:g} s; the end of broker {node}'s log:\n{self.log(node)}")
                time.sleep(0.1)

    def log(self, node: int, lines: int = 20) -> str:
        """The end of a broker's log."""
        text = (self._folder / f"broker-{node}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def log_dir(self, node: int) -> Path:
        """Where a broker keeps its data: a folder `topic-partition` each."""
        return self._folder / f"data-{node}"

    def create_topic(
        self, topic: str, partitions: int = 1, replicas: int = 1, on: Sequence[int] | None = None, **config: Any
    ) -> None:
        """Makes a topic, its replicas anywhere or `on` given nodes; `retention_ms=1` is `retention.ms`.

        Returns once it can be read and written.
        """
        placed = {"replication_factor": replicas} if on is None else {"replica_assignment": [list(on)] * partitions}
        asked = NewTopic(
            topic,
            num_partitions=partitions,
            config={name.replace("_", "."): str(value) for name, value in config.items()},
            **placed,
        )
        self.wait_for(lambda: self._create(asked))
        self.wait_for(lambda: self._has_leaders(topic, partitions))

    def delete_topic(self, topic: str) -> None:
        self.admin.delete_topics([topic])[topic].result(30)
        self.wait_for(lambda: topic not in self.admin.list_topics(timeout=5).topics)

    def add_partitions(self, topic: str, total: int) -> None:
        self.admin.create_partitions([NewPartitions(topic, total)])[topic].result(30)
        self.wait_for(lambda: self._has_leaders(topic, total))

    def leader_of(self, topic: str, kafka_partition: int = 0) -> int:
        """The node that leads a topic partition, -1 while there is none."""
        return self.admin.list_topics(topic, timeout=10).topics[topic].partitions[kafka_partition].leader

    def in_sync(self, topic: str, kafka_partition: int = 0) -> set[int]:
        """Nodes whose replica has everything."""
        return set(self.admin.list_topics(topic, timeout=10).topics[topic].partitions[kafka_partition].isrs)

    def _create(self, asked: NewTopic) -> bool:
        """Whether it is there; a client may wait for a controller that is gone, so it is asked anew."""
        try:
            self.admin.create_topics([asked], request_timeout=10)[asked.topic].result(15)
        except KafkaException as error:
            return error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS
        except TimeoutError:
            self._admin = None
            return False
        return True

    def _has_leaders(self, topic: str, partitions: int) -> bool:
        known = self.admin.list_topics(timeout=5).topics.get(topic)
        return known is not None and sum(part.leader >= 0 for part in known.partitions.values()) == partitions

    @staticmethod
    def wait_for(done: Any, patience_s: float = 90.0) -> None:
        """Until done() is true; what Kafka fails to say meanwhile counts as not yet."""
        deadline = time.monotonic() + patience_s
        while True:
            with contextlib.suppress(KafkaException):
                if done():
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not so after {patience_s:g} s")
            time.sleep(0.1)

    def _format(self, node: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        properties = self._folder / f"broker-{node}.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._of(node).items()))
        scram = self._security.scram() if self._security else []
        done = subprocess.run(
            self._java(
                "kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster_id}", "-c", str(properties), *scram
            ),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"broker {node} cannot be formatted:\n{done.stdout}{done.stderr}")

    def _launch(self, node: int) -> None:
        self._processes[node] = self._launcher.submit(self._popen, node).result()

    def _popen(self, node: int) -> subprocess.Popen[bytes]:
        with open(self._folder / f"broker-{node}.log", "ab") as log:
            return subprocess.Popen(
                self._java("kafka.Kafka", str(self._folder / f"broker-{node}.properties")),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    def _java(self, main: str, *arguments: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"
        return ["java", *JVM, logging, "-cp", f"{self._jars}/*", main, *arguments]

    def _of(self, node: int) -> dict[str, Any]:
        client, inside, controller = self._ports[node]
        protocol = self._security.protocol if self._security else "PLAINTEXT"
        copies = min(3, len(self.nodes))
        return {
            **QUICK,
            "process.roles": "broker,controller",
            "node.id": node,
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{ports[2]}" for n, ports in self._ports.items()),
            "listeners": f"CLIENT://127.0.0.1:{client},INSIDE://127.0.0.1:{inside},CONTROLLER://127.0.0.1:{controller}",
            "listener.security.protocol.map": f"CLIENT:{protocol},INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "INSIDE",
            "log.dirs": self.log_dir(node),
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": min(2, copies),
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": min(2, copies),
            **(self._security.properties() if self._security else {}),
            **self._properties,
        }


@contextmanager
def running_cluster(
    folder: Path, size: int = 1, security: Security | None = None, properties: Mapping[str, Any] | None = None
) -> Iterator[Cluster]:
    """A cluster that ends with the block. Raises KafkaUnavailable where it cannot run."""
    cluster = Cluster(folder, size, security, properties)
    try:
        cluster.start_all()
        yield cluster
    finally:
        cluster.stop_all()


def _free_ports(count: int) -> Sequence[int]:
    """Ports of loopback that nobody listens on now, below those that outgoing connections are given."""
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", 20_000 + secrets.randbelow(10_000)))
                ports.append(probe.getsockname()[1])
    return ports


def _die_with_parent() -> None:
    """Linux: the kernel ends the broker when the tests are gone, even after kill -9."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
