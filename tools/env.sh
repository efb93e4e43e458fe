# shellcheck shell=bash
# Sourced, from the root of the checkout: puts what tools/install.sh unpacked under target/tools on
# the path. Does nothing where the distribution's packages are installed.
if [ -d target/tools/usr ]; then
  for directory in "$PWD"/target/tools/usr/lib/postgresql/*/bin "$PWD/target/tools/usr/bin"; do
    if [ -d "$directory" ]; then PATH="$directory:$PATH"; fi
  done
  for directory in "$PWD"/target/tools/usr/lib/*-linux-gnu "$PWD"/target/tools/lib/*-linux-gnu; do
    if [ -d "$directory" ]; then
      LD_LIBRARY_PATH="$directory${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
      export LD_LIBRARY_PATH
    fi
  done
  export PATH
  unset directory
fi
