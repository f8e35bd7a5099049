#!/bin/sh
# Install what is missing of the named things (browser, compiler, coq), where that is possible: apt-get, as root. Never fails:
# a test that needs what is still missing is skipped and says so, or fails under POLYDISTILL_REQUIRE_ALL=1.
any() {
  for program; do command -v "$program" >/dev/null && return 0; done
  return 1
}
packages=
for thing; do
  case $thing in
    browser) any chromium chromium-browser google-chrome || packages="$packages chromium" ;;
    compiler) any c++ g++ clang++ || packages="$packages g++" ;;
    coq) { any coqc && any coqchk && [ -e "$(coqc -where)/user-contrib/Coquelicot" ]; } ||
           packages="$packages coq libcoq-coquelicot" ;;
  esac
done
[ -n "$packages" ] && [ "$(id -u)" = 0 ] && any apt-get || exit 0
export DEBIAN_FRONTEND=noninteractive
echo "installing:$packages"
{ timeout 120 apt-get update -qq && timeout 600 apt-get install -y -qq --no-install-recommends $packages; } >/dev/null ||
  echo "could not be installed:$packages"
exit 0
