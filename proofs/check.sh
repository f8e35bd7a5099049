#!/bin/sh
# Compile every proof, let the independent checker list what they rest on, and write index.json.
# JOBS=2 ./check.sh compiles two files at a time.
set -eu
cd "$(dirname "$0")"
export LC_ALL=C

if ! command -v coqc >/dev/null || ! command -v coqchk >/dev/null ||
   ! [ -e "$(coqc -where)/user-contrib/Coquelicot/Coquelicot.vo" ]; then
  echo "proofs: need Coq 8.16 and Coquelicot: apt-get install -y --no-install-recommends coq libcoq-coquelicot" >&2
  exit 1
fi

python3 instances.py                      # instances.toml -> Instances.v

# Nothing may be assumed in a source file, and every source file is listed.
if grep -nE '\b(Admitted|admit|give_up|Abort|Axioms?|Parameters?|Conjectures?|Variables?|Hypothes[ie]s|Context|Primitive|bypass_check|type-in-type|vm_cast_no_check|native_cast_no_check|exact_no_check|Unset +(Guard|Positivity|Universe)[A-Za-z ]*|Declare ML)\b' ./*.v; then
  echo "proofs: escape hatch found" >&2; exit 1
fi
for file in *.v; do
  grep -qx "$file" _CoqProject || { echo "proofs: $file is not listed in _CoqProject" >&2; exit 1; }
done

coq_makefile -f _CoqProject -o Makefile.coq
make --no-print-directory -f Makefile.coq -j"${JOBS:-1}"

# The checker reads the compiled files again, libraries included, without trusting the compiler.
coqchk -silent -o -Q . Proofs $(sed -n 's/^\(.*\)\.v$/Proofs.\1/p' _CoqProject) > coqchk.txt 2>&1 ||
  { tail -5 coqchk.txt >&2; exit 1; }
for what in 'type-in-type' 'unsafe (co)fixpoints' 'positivity is assumed'; do
  grep -F "$what" coqchk.txt | grep -q '<none>' || { echo "proofs: not clean: $what" >&2; exit 1; }
done

python3 index.py coqchk.txt               # refuses any other axiom; writes index.json
cp index.json ../src/polydistill/proofs_index.json   # the package cites these names; its tests compare the two
