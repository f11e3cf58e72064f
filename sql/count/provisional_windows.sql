-- Windows stored as provisional: computed again at every tick until they are final.
-- Relation: previous, the result rows stored until now. Grain: one row a window.
SELECT epoch_us(window_start) // 1000000 AS window_start_s
FROM previous
WHERE status = 'provisional'
