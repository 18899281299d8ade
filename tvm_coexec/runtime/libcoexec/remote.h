/* What a device offers to a host that measures with it: functions that take a request and give an answer. */
#ifndef COEXEC_REMOTE_H
#define COEXEC_REMOTE_H

#include "request.h"

/* Where the host's files are; a copy of the caller's, or NULL with an error. */
typedef char* (*path_finder)(const char* name);

typedef coexec_status (*remote_function)(const char* request, path_finder find_path, answer* to);

/* guard.c: has a server outlive this session, however it ends, where that serves it in a process of its own. */
coexec_status remote_guard(const char* request, path_finder find_path, answer* to);

coexec_status remote_facts(const char* request, path_finder find_path, answer* to);
coexec_status remote_text(const char* request, path_finder find_path, answer* to);
coexec_status remote_describe(const char* request, path_finder find_path, answer* to);
coexec_status remote_program(const char* request, path_finder find_path, answer* to);
coexec_status remote_run(const char* request, path_finder find_path, answer* to);
coexec_status remote_fill(const char* request, path_finder find_path, answer* to);
coexec_status remote_fetch(const char* request, path_finder find_path, answer* to);
coexec_status remote_close(const char* request, path_finder find_path, answer* to);

/* facts.c: what there is to know of the device and the machine. */
void say_facts(const coexec_device* device, answer* to);

/* remote.c: the module of a request, opened if it is not yet, or if its file is another by now. */
coexec_status find_module(const char* request, path_finder find_path, coexec_module** module);

#endif
