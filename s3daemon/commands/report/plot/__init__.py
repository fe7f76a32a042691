"""The picture of a report, drawn by matplotlib, which only `--plot FILE` imports.

`picture` puts three charts together: how long transfers took, when, and their groups, which `groups` draws; `axes` has
what they share. A picture is looked at as a thumbnail in a chat first: it has few words, in large letters, and none
where a line or a point can strike it through. Begin with `picture`.
"""
