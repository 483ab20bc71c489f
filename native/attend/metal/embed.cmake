# cmake -DOUTPUT=FILE -P embed.cmake: the kernels, with what they include, as one string of C++: headkv_metal_source.

file(READ ${CMAKE_CURRENT_LIST_DIR}/headkv-metal.metal KERNELS)
foreach (header headkv-metal-args.h headkv-metal-rows.h)
    file(READ ${CMAKE_CURRENT_LIST_DIR}/${header} TEXT)
    string(REPLACE "#include \"${header}\"" "${TEXT}" KERNELS "${KERNELS}")
endforeach()
if (KERNELS MATCHES "#include \"")
    message(FATAL_ERROR "headkv-metal.metal includes a file that embed.cmake does not know")
endif()
file(WRITE ${OUTPUT} "#include \"headkv-metal-source.h\"\n\nconst char * const headkv_metal_source = R\"headkv(${KERNELS})headkv\";\n")
