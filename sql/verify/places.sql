-- How often the records of some ranges of offsets stand in the lake: each must stand once.
--
-- Grain: one row a range, in order.
-- Relations: frames, held, quarantine (topic, kafka_partition, kafka_offset)  every row that may be of the ranges
--            admitted (topic, kafka_partition, kafka_offset)  held frames that count: their row in held does not
--            ranges   (topic, kafka_partition, start_offset, end_offset, records, generations)  half-open; of one log,
--                     so they do not overlap
-- `generations`: how many topics of that name were drained. Offsets began again each time, so a place may stand once
-- for each.
-- Safe to run twice: it changes nothing.
WITH stored AS (
    SELECT topic, kafka_partition, kafka_offset FROM frames
    UNION ALL
    SELECT topic, kafka_partition, kafka_offset FROM held ANTI JOIN admitted USING (topic, kafka_partition, kafka_offset)
    UNION ALL
    SELECT topic, kafka_partition, kafka_offset FROM quarantine
),
per_place AS (
    SELECT topic, kafka_partition, kafka_offset, count(*) AS times
    FROM stored
    GROUP BY ALL
),
per_range AS (
    SELECT
        r.topic,
        r.kafka_partition,
        r.start_offset,
        sum(times)::BIGINT                                       AS found,
        count(*) FILTER (times > r.generations)                  AS too_often,
        min(p.kafka_offset) FILTER (times > r.generations)       AS first_too_often,
        max(p.kafka_offset) FILTER (times > r.generations)       AS last_too_often
    FROM per_place p
    ASOF JOIN ranges r
      ON p.topic = r.topic AND p.kafka_partition = r.kafka_partition AND p.kafka_offset >= r.start_offset
    WHERE p.kafka_offset < r.end_offset
    GROUP BY ALL
)
SELECT
    topic,
    kafka_partition,
    start_offset,
    end_offset,
    records,
    generations,
    coalesce(found, 0)     AS found,
    coalesce(too_often, 0) AS too_often,
    first_too_often,
    last_too_often
FROM ranges
LEFT JOIN per_range USING (topic, kafka_partition, start_offset)
ORDER BY topic, kafka_partition, start_offset
