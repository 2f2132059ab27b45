/* What commit.c needs of probe.c. */
#ifndef PROBE_H
#define PROBE_H

void probe_register(void);                                         /* in _PG_init */
void refuse_forced_settings(const struct AlterSystemStmt *statement); /* raises an ERROR */
void refuse_outside_tablespace(const struct CreateTableSpaceStmt *statement); /* the same */
#endif
