#pragma once
int intfa_placeholder(void);
