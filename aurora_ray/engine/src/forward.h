/* What commit.c needs of forward.c. */
#ifndef FORWARD_H
#define FORWARD_H

void forward_register(void); /* in _PG_init */
#endif
