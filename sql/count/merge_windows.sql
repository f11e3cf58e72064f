-- The new content of result files: recomputed windows in the place of their earlier rows, the rest as it was.
--
-- Grain: one row a window of the buckets at hand, in window order.
-- Relations: computed (window_start_s, window_end_s, frames, unique_users, late_frames, held_frames,
--                      rejected_frames, hll, estimate, estimate_lower, estimate_upper, by_dimension,
--                      entries_changed: NULL where no dimensions are set)
--            previous: the rows stored until now
--            targets (window_start_s, window_end_s, reason)
-- Parameters: $grain; $empty_hll: the state of no users; $final_before_s: windows that end at or before it are final (NULL: none);
--             $computed_at
-- Columns more than a result row, for the ledger: row_changed, answer_changed.
-- Safe to run twice: a row that comes out the same keeps its revision, its time and its history.
--
-- A row remembers its earlier revisions, the newest 1,000. Left out are those of a window that was still
-- provisional and only growing: an hour has a revision a minute while it is open.

WITH answers AS (
    SELECT
        to_timestamp(window_start_s)                 AS window_start,
        to_timestamp(window_end_s)                   AS window_end,
        frames,
        unique_users,
        late_frames,
        held_frames,
        rejected_frames,
        coalesce(hll, $empty_hll::BLOB)              AS hll,
        coalesce(estimate, 0.0)                      AS estimate,
        coalesce(estimate_lower, 0.0)                AS estimate_lower,
        coalesce(estimate_upper, 0.0)                AS estimate_upper,
        by_dimension,
        entries_changed,
        coalesce(window_end_s <= $final_before_s::BIGINT, false) AS is_final,
        targets.reason                               AS mark
    FROM computed
    JOIN targets USING (window_start_s, window_end_s)
),
compared AS (
    SELECT
        a.*,
        p.revision       AS old_revision,
        p.computed_at    AS old_computed_at,
        p.reason         AS old_reason,
        p.status         AS old_status,
        p.unique_users   AS old_unique_users,
        p.estimate       AS old_estimate,
        p.estimate_lower AS old_estimate_lower,
        p.estimate_upper AS old_estimate_upper,
        p.frames         AS old_frames,
        p.previous_unique_users AS older_unique_users,
        p.previous_estimate     AS older_estimate,
        p.history               AS old_history,
        CASE WHEN a.is_final OR p.status = 'final' THEN 'final' ELSE 'provisional' END AS status,
        (p.frames, p.hll) IS DISTINCT FROM (a.frames, a.hll)
            OR (a.unique_users IS NOT NULL AND p.unique_users IS NOT NULL AND p.unique_users <> a.unique_users)
            OR coalesce(a.entries_changed, p.by_dimension IS NOT NULL)
                         AS answer_changed,
        p.unique_users IS DISTINCT FROM a.unique_users
            OR p.by_dimension IS DISTINCT FROM a.by_dimension                AS users_changed,
        (p.late_frames, p.held_frames, p.rejected_frames)
            IS DISTINCT FROM (a.late_frames, a.held_frames, a.rejected_frames) AS tally_changed
    FROM answers a
    LEFT JOIN previous p USING (window_start)
    -- a window is created by its first frame; one that lost its last frame stays, with 0
    WHERE a.frames > 0 OR p.window_start IS NOT NULL
),
judged AS (
    SELECT
        *,
        answer_changed OR users_changed OR tally_changed OR status IS DISTINCT FROM old_status AS row_changed
    FROM compared
)
SELECT
    $grain                                         AS grain,
    window_start,
    window_end,
    frames,
    unique_users,
    estimate,
    estimate_lower,
    estimate_upper,
    hll,
    late_frames,
    held_frames,
    rejected_frames,
    status,
    coalesce(old_revision, 0) + row_changed::INTEGER AS revision,
    CASE
        WHEN NOT row_changed THEN old_reason
        WHEN mark <> 'live' THEN mark
        WHEN old_status IS DISTINCT FROM 'final' THEN 'live'
        WHEN answer_changed THEN 'late'
        WHEN users_changed THEN 'exact'
        ELSE 'tally'
    END                                            AS reason,
    CASE WHEN row_changed THEN old_unique_users ELSE older_unique_users END AS previous_unique_users,
    CASE WHEN row_changed THEN old_estimate ELSE older_estimate END         AS previous_estimate,
    CASE WHEN row_changed THEN $computed_at::TIMESTAMPTZ ELSE old_computed_at END AS computed_at,
    CASE
        WHEN NOT row_changed OR old_revision IS NULL OR (old_status = 'provisional' AND old_reason = 'live')
            THEN coalesce(old_history, [])
        ELSE list_append(old_history[-999:], {
            'revision': old_revision,
            'frames': old_frames,
            'unique_users': old_unique_users,
            'estimate': old_estimate,
            'estimate_lower': old_estimate_lower,
            'estimate_upper': old_estimate_upper,
            'status': old_status,
            'reason': old_reason,
            'computed_at': old_computed_at
        })
    END                                            AS history,
    by_dimension,
    row_changed,
    answer_changed
FROM judged
UNION ALL BY NAME
SELECT *, false AS row_changed, false AS answer_changed
FROM previous
WHERE window_start NOT IN (SELECT to_timestamp(window_start_s) FROM computed)
ORDER BY window_start
