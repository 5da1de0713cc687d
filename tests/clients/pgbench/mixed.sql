\set id random(1, 1000)
SELECT abalance AS before FROM pgbench_accounts WHERE aid = :id \gset
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :id;
SELECT abalance - :before AS step FROM pgbench_accounts WHERE aid = :id \gset one_
SELECT 1 / :one_step;
SELECT :id::int AS mine \gset first_
SELECT :id::int * 2 AS twice \gset
\if :twice != 2 * :id
SELECT 1 / 0;
\endif
