"""Kafka, as this project uses it. The only package that imports confluent_kafka.

client    connection options from the settings, and errors in our words
source    reading a topic by offsets
sink      writing results, and demo frames
embedded  a broker inside this process, for the demo and the tests
"""
