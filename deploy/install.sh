#!/bin/sh
# Installs the archive in whose folder it lies. As root: user `wardpose`, /opt/wardpose, the home below /var/lib, systemd units.
# Without root: everything below one folder (--prefix), and nothing anywhere else.
set -eu
umask 077

usage() {
    cat <<END
usage: sh install.sh [--prefix DIR] [--python PYTHON] [--wheels DIR] [--fingerprint HEX] [-- OPTIONS...]
  --prefix DIR       install everything below DIR (the home is DIR itself); without it root installs for the whole machine
  --python PYTHON    use this Python, in which Wardpose is installed already, and make no environment
  --wheels DIR       take what Wardpose needs from the wheels in DIR, and nothing from the network
  --fingerprint HEX  what the coordinator told you the fingerprint is, by telephone or in person
  OPTIONS            for \`wardpose {{ role }} install\`
END
}

fail() {
    echo "install.sh: $1" >&2
    exit 2
}

start=$PWD kit=$(cd "$(dirname "$0")" && pwd -P)
prefix= python= wheels= expected=
while [ $# -gt 0 ]; do
    case $1 in
        --prefix | --python | --wheels | --fingerprint)
            [ $# -ge 2 ] || fail "$1: needs a value"
            case $1 in
                --prefix) prefix=$2 ;;
                --python) python=$2 ;;
                --wheels) wheels=$2 ;;
                --fingerprint) expected=$(printf %s "$2" | tr -d ' :' | tr A-F a-f) ;;
            esac
            shift 2
            ;;
        --) shift && break ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && fail "$1: is no option" ;;
    esac
done

# 1. Every file is there, is what it was, and nothing was added.
cd "$kit"
for file in SHA256SUMS SHA256SUMS.sig signer.pem; do
    [ -f "$file" ] || fail "$kit/$file: is missing; unpack the archive again"
done
sha256sum --check --strict --quiet SHA256SUMS >&2 || fail "$kit: is not what was packed; fetch the archive again"
listed=$(cut -c 67- SHA256SUMS | LC_ALL=C sort)
there=$(find . ! -type d ! -path ./SHA256SUMS ! -path ./SHA256SUMS.sig | cut -c 3- | LC_ALL=C sort)
[ "$listed" = "$there" ] || fail "$kit: holds files that were not packed, or links; unpack the archive into a new folder"

# 2. Who signed it.
found=$(sha256sum signer.pem | cut -c 1-64)
echo "signed by the key $found"
if [ -n "$expected" ]; then
    [ "$expected" = "$found" ] || fail "the coordinator's key is $expected; do not install this archive"
elif [ -t 0 ]; then
    printf 'Is this the fingerprint that the coordinator told you? [yes/no] '
    read -r answer
    [ "$answer" = yes ] || fail "ask the coordinator, and start again"
else
    fail "--fingerprint: is needed where nobody can be asked"
fi
if command -v openssl >/dev/null; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    { printf 'wardpose signature v1\000kit\000' && cat SHA256SUMS; } >"$work/signed"
    openssl base64 -d -A -in SHA256SUMS.sig -out "$work/signature" 2>/dev/null || true
    openssl dgst -sha384 -verify signer.pem -signature "$work/signature" "$work/signed" >/dev/null 2>&1 \
        || fail "SHA256SUMS.sig: is not a signature of that key; do not install this archive"
    rm -rf "$work"
    trap - EXIT
fi

# 3. Python, and Wardpose in it.
from_there() { # what was meant where this was started
    case $1 in /*) echo "$1" ;; *) echo "$start/$1" ;; esac
}
if [ -z "$prefix" ] && [ "$(id -u)" != 0 ]; then
    fail "--prefix: is needed without root"
fi
if [ -n "$prefix" ]; then
    prefix=$(from_there "$prefix")
    home=$prefix environment=$prefix/venv
else
    home={{ home }} environment=/opt/wardpose
fi
if [ -z "$python" ]; then
    made=
    undo() { # what this call made, and no more
        [ -z "$made" ] || rm -rf "$environment"
        [ -z "$prefix" ] || rmdir "$prefix" 2>/dev/null || true
        fail "$1"
    }
    if [ ! -x "$environment/bin/python" ]; then
        made=yes
        python3 -m venv "$environment" || undo "$environment: cannot be made"
    fi
    python=$environment/bin/python
    offline=
    [ -z "$wheels" ] || offline="--no-index --find-links $(from_there "$wheels")"
    # shellcheck disable=SC2086 # two words, or none
    "$python" -m pip install --quiet --disable-pip-version-check $offline --constraint wheel/constraints.txt wheel/wardpose-*.whl \
        || undo "Wardpose could not be installed in $environment"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-index --force-reinstall wheel/wardpose-*.whl \
        || undo "Wardpose could not be installed in $environment"
    [ -n "$prefix" ] || chmod -R go+rX "$environment"
else
    case $python in
        */*) python=$(from_there "$python") ;;
        *) python=$(command -v "$python") || fail "--python $python: is not found" ;;
    esac
fi
command=$(dirname "$python")/wardpose
[ -x "$command" ] || fail "$command: is missing; --python must be one in which Wardpose is installed"

# 4. The rest is Wardpose's: it checks all of this again, and puts the files where they belong.
cd "$start"
exec "$command" {{ role }} install "$kit" --fingerprint "$found" ${prefix:+--home "$home"} "$@"
