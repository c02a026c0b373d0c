@echo off
rem Installs the packages of this folder into a virtual environment, without a network, and checks the model.
rem   install.bat [FOLDER]       FOLDER: where to; "venv" beside this script if absent
rem   set PYTHON=C:\path\to\python.exe before it for another Python
setlocal
set "here=%~dp0"
set "target=%~1"
if "%target%"=="" set "target=%here%venv"
if not defined PYTHON set "PYTHON=python"
"%PYTHON%" -I -c "import sys; sys.exit(sys.version_info[:2] != (@MAJOR@, @MINOR@))" 2>nul
if errorlevel 1 (
  echo install.bat: these packages are for Python @MAJOR@.@MINOR@ on @PLATFORM@, which %PYTHON% is not: set PYTHON 1>&2
  exit /b 1
)
"%PYTHON%" -I -m venv "%target%" || exit /b 1
"%target%\Scripts\python.exe" -I -m pip --isolated install --no-index --no-cache-dir --disable-pip-version-check --no-input --quiet --find-links "%here%wheels" --require-hashes -r "%here%requirements.txt" || exit /b 1
call "%here%check.bat" "%target%"
