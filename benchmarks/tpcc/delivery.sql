\set w random(1, :scale)
SELECT tpcc.delivery(:w);
