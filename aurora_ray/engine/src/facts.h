/* What commit.c needs of facts.c. */
#ifndef FACTS_H
#define FACTS_H

void facts_register(void); /* in _PG_init */
#endif
