/* The files of a sparse tree, made by the hundred: of 20,000 small system calls Python would take as long as the kernel. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
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

/* Through the descriptor, so that no path is looked up again. Returns 0 or an errno. */
static int shape(int fd, struct file *file, const struct owner *owner)
{
    struct stat found;
    if (owner->other && fchown(fd, owner->uid, owner->gid))
        return errno;
    if (file->mode & ~OWNERS_BITS && fchmod(fd, file->mode)) /* this process's umask may have taken them */
        return errno;
    if (file->size && ftruncate(fd, file->size))
        return errno;
    if (fstat(fd, &found))
        return errno;
    file->ino = found.st_ino;
    return 0;
}

static int make(int root, struct file *files, Py_ssize_t n, const struct owner *owner)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        int fd = openat(root, files[i].path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, files[i].mode & OWNERS_BITS);
        if (fd < 0)
            return errno;
        int error = shape(fd, &files[i], owner);
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
    int root;
    PyObject *items;
    long long uid, gid; /* an account's number may have 32 bits */
    if (!PyArg_ParseTuple(args, "iO!LL:make_files", &root, &PyTuple_Type, &items, &uid, &gid))
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
    error = make(root, files, n, &owner);
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
     "make_files(root_fd, ((path, mode, size), ...), uid, gid) -> [inode number, ...]\n\n"
     "Makes empty files of these sizes below a directory, for an account (-1: this process's own)."},
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
