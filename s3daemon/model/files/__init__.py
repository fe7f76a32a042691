"""Users' files, on file systems that may not answer: no other room touches them.

Begin with `source`: how a file is checked and opened, and checked again after it was sent. What the kernel has in
memory is asked for in the event loop (`memory`), all else in a thread (`calls`); files that come together take `turns`.
"""
