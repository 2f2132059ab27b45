/* The files of a sparse tree, made by the hundred: of 20,000 small system calls Python would take as long as the kernel. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OWNERS_BITS 0700

struct file {
    const char *path;
    mode_t mode;
    off_t size;
    ino_t ino;
};

struct owner {
    bool other; /* than this process's own account */
    uid_t uid;
    gid_t gid;
};

/* One that is there is opened as well, if it lies in the tree: whatever somebody has put there, no link is followed. */
static int open_there(int root, const struct file *file)
{
    struct open_how how = {.flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
                           .mode = file->mode & OWNERS_BITS,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, root, file->path, &how, sizeof how);
}

static int open_new(int root, const struct file *file)
{
    return openat(root, file->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, file->mode & OWNERS_BITS);
}

/*
 * Through the descriptor, so that no path is looked up again. What is right already is left alone: each change waits its
 * turn on a busy disk. Returns 0 or an errno; EEXIST: what is there is no file that holds nothing.
 */
static int shape(int fd, struct file *file, const struct owner *owner, bool there)
{
    struct stat found;
    if (fstat(fd, &found))
        return errno;
    if (there && (!S_ISREG(found.st_mode) || found.st_nlink != 1 || found.st_blocks))
        return EEXIST;
    bool gives = owner->other && (found.st_uid != owner->uid || found.st_gid != owner->gid);
    if (gives && fchown(fd, owner->uid, owner->gid))
        return errno;
    bool lacks = (found.st_mode & 07777) != file->mode; /* this process's umask may have taken bits, */
    if ((lacks || (gives && file->mode & (S_ISUID | S_ISGID))) && fchmod(fd, file->mode)) /* and fchown these */
        return errno;
    if (found.st_size != file->size && ftruncate(fd, file->size))
        return errno;
    file->ino = found.st_ino;
    return 0;
}

static int make(int root, struct file *files, Py_ssize_t n, const struct owner *owner, bool there)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        int fd = there ? open_there(root, &files[i]) : open_new(root, &files[i]);
        if (fd < 0)
            return errno;
        int error = shape(fd, &files[i], owner, there);
        close(fd);
        if (error)
            return error;
    }
    return 0;
}

/* One (path, mode, size). The path stays the tuple's; the caller keeps the sequence. */
static bool read_file(PyObject *item, struct file *file)
{
    unsigned int mode;
    long long size;
    PyObject *path;
    if (!PyArg_ParseTuple(item, "SIL", &path, &mode, &size))
        return false;
    char *bytes;
    if (PyBytes_AsStringAndSize(path, &bytes, NULL)) /* ValueError if a zero byte is in it */
        return false;
    if (size < 0) {
        PyErr_SetString(PyExc_ValueError, "a file's size is negative");
        return false;
    }
    *file = (struct file){.path = bytes, .mode = mode & 07777, .size = size};
    return true;
}

static PyObject *numbers_of(const struct file *files, Py_ssize_t n)
{
    PyObject *numbers = PyList_New(n);
    for (Py_ssize_t i = 0; numbers && i < n; i++) {
        PyObject *ino = PyLong_FromUnsignedLongLong(files[i].ino);
        if (!ino)
            Py_CLEAR(numbers);
        else
            PyList_SET_ITEM(numbers, i, ino);
    }
    return numbers;
}

static PyObject *make_files(PyObject *Py_UNUSED(module), PyObject *args)
{
    int root, there;
    PyObject *items;
    long long uid, gid; /* an account's number may have 32 bits */
    if (!PyArg_ParseTuple(args, "iO!LLp:make_files", &root, &PyTuple_Type, &items, &uid, &gid, &there))
        return NULL;
    struct owner owner = {.other = uid != -1, .uid = (uid_t)uid, .gid = (gid_t)gid};
    Py_ssize_t n = PyTuple_GET_SIZE(items);
    struct file *files = PyMem_New(struct file, n ? n : 1);
    if (!files)
        return PyErr_NoMemory();
    PyObject *numbers = NULL;
    for (Py_ssize_t i = 0; i < n; i++)
        if (!read_file(PyTuple_GET_ITEM(items, i), &files[i]))
            goto out;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = make(root, files, n, &owner, there);
    Py_END_ALLOW_THREADS
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    } else {
        numbers = numbers_of(files, n);
    }
out:
    PyMem_Free(files);
    return numbers;
}

static PyMethodDef methods[] = {
    {"make_files", make_files, METH_VARARGS,
     "make_files(root_fd, ((path, mode, size), ...), uid, gid, there) -> [inode number, ...]\n\n"
     "Makes empty files of these sizes below a directory, for an account (-1: this process's own). `there`: some of them\n"
     "may be there, with nothing in them, and are given what they lack; FileExistsError for one that is something else."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aurora_ray.mount._tree",
    .m_doc = "Makes the files of a mount.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__tree(void)
{
    return PyModule_Create(&definition);
}
