@echo off
rem Checks an installed bundle: files, versions, and the score of the image that lies here.
rem   check.bat [FOLDER]         FOLDER: where it was installed; "venv" beside this script if absent
setlocal
set "target=%~1"
if "%target%"=="" set "target=%~dp0venv"
"%target%\Scripts\python.exe" -I -m ensemblead.deploy.checking "%~dp0."
