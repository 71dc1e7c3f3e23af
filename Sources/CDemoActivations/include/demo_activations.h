int intfa_demo_placeholder(void);
