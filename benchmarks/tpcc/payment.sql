\set w random(1, :scale)
\set d random(1, 10)
SELECT tpcc.payment(:w, :d);
