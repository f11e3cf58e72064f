"""Real Apache Kafka without Docker: brokers in KRaft mode, started with the installed Java on loopback.

jars     Apache Kafka from Maven Central, in a cache outside of the repository
cluster  one broker or several, that can be killed and started again, with or without security
traffic  what ordinary producers do: transactions, codecs, frames with numbers
"""
