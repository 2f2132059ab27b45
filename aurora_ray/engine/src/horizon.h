/* What commit.c needs of horizon.c. */
#ifndef HORIZON_H
#define HORIZON_H

void horizon_register(void); /* in _PG_init */
#endif
